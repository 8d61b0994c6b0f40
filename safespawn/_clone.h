/*
 * How a child is born, for the core alone: the launcher is born by the core, and makes none.
 */
#ifndef SS_CLONE_H
#define SS_CLONE_H

#include "_sys.h"

/* clone3(2); kernels that know a shorter one take a longer one whose rest is zero. */
struct ss_clone_args {
	uint64_t flags;
	uint64_t pidfd;
	uint64_t child_tid;
	uint64_t parent_tid;
	uint64_t exit_signal;
	uint64_t stack;
	uint64_t stack_size;
	uint64_t tls;
	uint64_t set_tid, set_tid_size;
	uint64_t cgroup; /* Linux 5.7 */
};

/*
 * The two clone stubs. The child starts on a stack of its own (hazard 6) and
 * calls main(argument) there; main never returns, and the trap after it says
 * so to the reader and to the processor. The two values it needs sit in
 * registers which the kernel copies to the child. The frame pointer is zeroed
 * to end backtraces.
 */
#if defined(__x86_64__)
#define SS_CLONE_TAIL                                                           \
	"syscall\n\t"                                                           \
	"testq %%rax, %%rax\n\t"                                                \
	"jnz 1f\n\t"                                                            \
	"xorl %%ebp, %%ebp\n\t"                                                 \
	"movq %%r13, %%rdi\n\t"                                                 \
	"callq *%%r12\n\t"                                                      \
	"ud2\n"                                                                 \
	"1:"
#else
#define SS_CLONE_TAIL                                                           \
	"svc 0\n\t"                                                             \
	"cbnz x0, 1f\n\t"                                                       \
	"mov x29, xzr\n\t"                                                      \
	"mov x0, x20\n\t"                                                       \
	"blr x19\n\t"                                                           \
	"brk #1\n"                                                              \
	"1:"
#endif

static SS_CHILD long
ss_child_born3(struct ss_clone_args *args, void (*main)(void *), void *argument)
{
#if defined(__x86_64__)
	long answer;
	register void (*r12)(void *) __asm__("r12") = main;
	register void *r13 __asm__("r13") = argument;

	__asm__ volatile(SS_CLONE_TAIL
			 : "=a"(answer)
			 : "a"(SYS_clone3), "D"(args), "S"(sizeof(*args)), "r"(r12), "r"(r13)
			 : "rcx", "r11", "memory", "cc");
	return answer;
#else
	register long x8 __asm__("x8") = SYS_clone3;
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = (long)sizeof(*args);
	register void (*x19)(void *) __asm__("x19") = main;
	register void *x20 __asm__("x20") = argument;

	__asm__ volatile(SS_CLONE_TAIL
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x19), "r"(x20)
			 : "memory", "cc");
	return x0;
#endif
}

/* clone(2) takes the top of the stack, and stores the pidfd in parent_tid. */
static SS_CHILD long
ss_child_born2(struct ss_clone_args *args, void (*main)(void *), void *argument)
{
	const long flags = (long)(args->flags | args->exit_signal);
	const long top = (long)(args->stack + args->stack_size);
#if defined(__x86_64__)
	long answer;
	register void (*r12)(void *) __asm__("r12") = main;
	register void *r13 __asm__("r13") = argument;
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;

	__asm__ volatile(SS_CLONE_TAIL
			 : "=a"(answer)
			 : "a"(SYS_clone), "D"(flags), "S"(top), "d"(args->pidfd), "r"(r10),
			   "r"(r8), "r"(r12), "r"(r13)
			 : "rcx", "r11", "memory", "cc");
	return answer;
#else
	register long x8 __asm__("x8") = SYS_clone;
	register long x0 __asm__("x0") = flags;
	register long x1 __asm__("x1") = top;
	register long x2 __asm__("x2") = (long)args->pidfd;
	register long x3 __asm__("x3") = 0;
	register long x4 __asm__("x4") = 0;
	register void (*x19)(void *) __asm__("x19") = main;
	register void *x20 __asm__("x20") = argument;

	__asm__ volatile(SS_CLONE_TAIL
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x19), "r"(x20)
			 : "memory", "cc");
	return x0;
#endif
}

#endif
