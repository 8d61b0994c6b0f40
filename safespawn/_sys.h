/*
 * Raw system calls, for code that may run in a child sharing our memory.
 *
 * errno and everything else that libc keeps in thread-local storage belong to
 * the parent there (hazard 7 in _native.c), so nothing here goes through libc:
 * each call returns the kernel's own answer, a value or a negative errno.
 * Everything is always_inline, so that it lands in the section of its caller.
 */
#ifndef SS_SYS_H
#define SS_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#if !defined(__linux__) || !(defined(__x86_64__) || defined(__aarch64__))
#error "safespawn needs Linux on x86-64 or aarch64"
#endif

/* Headers older than the call lack its number; these are the same on both. */
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif

/* No sanitizer and no profiler in child code: they keep state in our memory. */
#define SS_BARE                                                                 \
	no_sanitize("address", "undefined", "thread"), no_instrument_function,  \
	    no_profile_instrument_function

#define SS_INLINE static inline __attribute__((always_inline, SS_BARE))

#if defined(__has_attribute)
#if __has_attribute(no_stack_protector)
#define SS_NO_CANARY __attribute__((no_stack_protector))
#endif
#endif
#ifndef SS_NO_CANARY
#define SS_NO_CANARY __attribute__((optimize("no-stack-protector")))
#endif

/*
 * Marks a function that runs in the child. Its own section lets a test list
 * what such code refers to; no canary, because __stack_chk_fail would run the
 * parent's abort path.
 */
#define SS_CHILD                                                                \
	__attribute__((section(".text.ss_child"), noinline, SS_BARE)) SS_NO_CANARY

SS_INLINE long
ss_syscall6(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	long answer;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(answer)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return answer;
#else
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory", "cc");
	return x0;
#endif
}

#define SS_ARG(x) ((long)(x))
#define ss_sys0(n) ss_syscall6(n, 0, 0, 0, 0, 0, 0)
#define ss_sys1(n, a) ss_syscall6(n, SS_ARG(a), 0, 0, 0, 0, 0)
#define ss_sys2(n, a, b) ss_syscall6(n, SS_ARG(a), SS_ARG(b), 0, 0, 0, 0)
#define ss_sys3(n, a, b, c) ss_syscall6(n, SS_ARG(a), SS_ARG(b), SS_ARG(c), 0, 0, 0)
#define ss_sys4(n, a, b, c, d) \
	ss_syscall6(n, SS_ARG(a), SS_ARG(b), SS_ARG(c), SS_ARG(d), 0, 0)
#define ss_sys5(n, a, b, c, d, e) \
	ss_syscall6(n, SS_ARG(a), SS_ARG(b), SS_ARG(c), SS_ARG(d), SS_ARG(e), 0)
#define ss_sys6(n, a, b, c, d, e, f) \
	ss_syscall6(n, SS_ARG(a), SS_ARG(b), SS_ARG(c), SS_ARG(d), SS_ARG(e), SS_ARG(f))

/*
 * The gate: the one instruction that may change credentials once the seal is on
 * (_seal.c). The filter there sees where a call comes from as the address of the
 * instruction after it: x86-64 saves that on SYSCALL, aarch64 on SVC, and seccomp(2)
 * shows it (populate_seccomp_data in kernel/seccomp.c, KSTK_EIP of either machine).
 * A second copy would be refused, so there is none: the compiler may neither inline
 * nor clone this, and if it did, the assembler would find the label twice. Only
 * forked children pass through here; there is always a gate, sealed or not.
 */
#if defined(__has_attribute)
#if __has_attribute(noclone)
#define SS_ONE_COPY __attribute__((noclone, used))
#endif
#endif
#ifndef SS_ONE_COPY
#define SS_ONE_COPY __attribute__((used)) /* clang has no word for the first */
#endif

extern const char ss_child_gate_back[] __attribute__((visibility("hidden")));

static SS_CHILD SS_ONE_COPY long
ss_child_gate(long number, long a, long b, long c, long d, long e)
{
#if defined(__x86_64__)
	long answer;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;

	__asm__ volatile("syscall\n"
			 "ss_child_gate_back:"
			 : "=a"(answer)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return answer;
#else
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;

	__asm__ volatile("svc 0\n"
			 "ss_child_gate_back:"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory", "cc");
	return x0;
#endif
}

#define ss_gate1(n, a) ss_child_gate(n, SS_ARG(a), 0, 0, 0, 0)
#define ss_gate2(n, a, b) ss_child_gate(n, SS_ARG(a), SS_ARG(b), 0, 0, 0)
#define ss_gate3(n, a, b, c) ss_child_gate(n, SS_ARG(a), SS_ARG(b), SS_ARG(c), 0, 0)

/* openat2(2), Linux 5.6; linux/openat2.h. */
struct ss_open_how {
	uint64_t flags;
	uint64_t mode;
	uint64_t resolve;
};

#define SS_RESOLVE_NO_MAGICLINKS 0x02u
#define SS_RESOLVE_NO_SYMLINKS 0x04u
#define SS_RESOLVE_IN_ROOT 0x10u

/*
 * The kernel's sigaction (include/uapi/asm-generic/signal.h); both machines
 * define SA_RESTORER, so both have the third word.
 */
struct ss_sigaction {
	uintptr_t handler;
	unsigned long flags;
	uintptr_t restorer;
	uint64_t mask;
};

#define SS_LAST_SIGNAL 64

#define SS_CLONE_VM 0x100ULL
#define SS_CLONE_PIDFD 0x1000ULL
#define SS_CLONE_VFORK 0x4000ULL
#define SS_CLONE_NEWNS 0x00020000ULL
#define SS_CLONE_PARENT_SETTID 0x00100000ULL
#define SS_CLONE_NEWUSER 0x10000000ULL
#define SS_CLONE_NEWPID 0x20000000ULL
#define SS_CLONE_INTO_CGROUP 0x200000000ULL /* clone3 only, Linux 5.7 */
#define SS_CLONE_CLEAR_SIGHAND 0x100000000ULL /* clone3 only, Linux 5.5 */

#endif
