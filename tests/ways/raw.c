/* Asks the kernel itself. Nothing in the process can see that. */
#include <sys/syscall.h>

long
way_plain(void)
{
	long answer = -1;
#if defined(__x86_64__)
	__asm__ volatile("movl %1, %%eax\n\tsyscall\n\tmovq %%rax, %0"
			 : "=r"(answer)
			 : "i"(SYS_setresuid), "D"(-1l), "S"(-1l), "d"(-1l)
			 : "rax", "rcx", "r11", "memory");
#else
	register long number __asm__("x8") = SYS_setresuid;
	register long a __asm__("x0") = -1, b __asm__("x1") = -1, d __asm__("x2") = -1;

	__asm__ volatile("svc #0" : "+r"(a) : "r"(number), "r"(b), "r"(d) : "memory");
	answer = a;
#endif
	return answer;
}
