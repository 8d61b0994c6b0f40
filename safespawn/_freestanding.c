/*
 * What a program without libc needs of its own: where it starts, what the compiler takes for
 * granted, and whether somebody made it set-id. Part of the launcher and of the helper;
 * SS_PROGRAM_MAIN is the function that gets what the kernel laid down.
 */

/* The compiler calls these for structs, libc or not. */
void *
memcpy(void *to, const void *from, size_t bytes)
{
	unsigned char *t = to;
	const unsigned char *f = from;

	while (bytes--)
		*t++ = *f++;
	return to;
}

void *
memset(void *to, int value, size_t bytes)
{
	unsigned char *t = to;

	while (bytes--)
		*t++ = (unsigned char)value;
	return to;
}

/*
 * What the kernel lays down for a program: argc, the arguments, the environment, and pairs
 * (System V ABI). A program of ours that somebody made set-id would do for everybody what a
 * plan says: getauxval(3), AT_SECURE.
 */
static int
ss_start_is_secure(const uintptr_t *start)
{
	const uintptr_t *at = start + 1 + start[0] + 1; /* behind the arguments */

	while (*at++) /* and the environment */
		;
	for (; at[0]; at += 2)
		if (at[0] == AT_SECURE)
			return at[1] != 0;
	return 1;
}

/* A parent whose real and effective ids differ makes every exec a secure one: then the file tells. */
static int
ss_start_is_set_id(const uintptr_t *start)
{
	struct stat st;

	if (!ss_start_is_secure(start))
		return 0;
	return ss_sys4(SYS_newfstatat, AT_FDCWD, "/proc/self/exe", &st, 0) < 0 || (st.st_mode & (S_ISUID | S_ISGID));
}

#define SS_TEXT_OF_(name) #name
#define SS_TEXT_OF(name) SS_TEXT_OF_(name)

#if defined(__x86_64__)
__asm__(".globl _start\n"
	".type _start, @function\n"
	"_start:\n\t"
	"endbr64\n\t"
	"xorl %ebp, %ebp\n\t"
	"movq %rsp, %rdi\n\t"
	"andq $-16, %rsp\n\t"
	"callq " SS_TEXT_OF(SS_PROGRAM_MAIN) "\n\t"
	"ud2\n");
#else
__asm__(".globl _start\n"
	".type _start, %function\n"
	"_start:\n\t"
	"bti c\n\t"
	"mov x29, xzr\n\t"
	"mov x0, sp\n\t"
	"bl " SS_TEXT_OF(SS_PROGRAM_MAIN) "\n\t"
	"brk #1\n");
#endif
