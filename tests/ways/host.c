/*
 * The running interpreter in a program that is not position independent, as Debian's is:
 * in such a one functions of libc have an address of the program's own (canonical PLT).
 */
#include <Python.h>
#include <unistd.h>

int
way_plain(void)
{
	int (*volatile address)(uid_t, uid_t, uid_t) = setresuid;

	return address((uid_t)-1, (uid_t)-1, (uid_t)-1);
}

int
main(int argc, char **argv)
{
	return Py_BytesMain(argc, argv);
}
