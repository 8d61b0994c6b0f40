/*
 * Rules of Landlock (landlock(7)) are made in the parent, who can tell which path was
 * wrong; a child only puts them on. What the numbers mean is in _landlock.py.
 *
 * The declarations are those of include/uapi/linux/landlock.h, made here because the
 * headers of a machine may be older than its kernel.
 */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444 /* Linux 5.13; the same on both machines */
#endif
#ifndef SYS_landlock_add_rule
#define SYS_landlock_add_rule 445
#endif

#define SS_LANDLOCK_VERSION 1u	   /* LANDLOCK_CREATE_RULESET_VERSION */
#define SS_LANDLOCK_PATH_BENEATH 1 /* LANDLOCK_RULE_PATH_BENEATH */

/* struct landlock_ruleset_attr of the first version: what later ones add is taken for zero. */
struct ss_landlock_attr {
	uint64_t handled;
};

/* struct landlock_path_beneath_attr: packed, so that nothing at its end is left unset. */
struct ss_landlock_rule {
	uint64_t allowed;
	int32_t parent_fd;
} __attribute__((packed));

/* The version of the running kernel, or a negative errno. */
SS_API int
ss_landlock_abi(void)
{
	return (int)ss_sys3(SYS_landlock_create_ruleset, NULL, 0, SS_LANDLOCK_VERSION);
}

/* Returns a descriptor (close-on-exec, as the kernel makes it), or a negative errno. */
SS_API int
ss_landlock_ruleset(uint64_t handled)
{
	const struct ss_landlock_attr attr = {handled};

	return (int)ss_sys3(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
}

/*
 * Allows rights below a directory, or of_file of them on whatever else the path leads to:
 * the kernel refuses a rule for a file that names a right over directories. One function,
 * so that a signal handler of Python, which may raise, finds no descriptor of ours open.
 */
SS_API int
ss_landlock_allow(int32_t ruleset, const char *path, uint64_t rights, uint64_t of_file)
{
	const long fd = ss_sys4(SYS_openat, AT_FDCWD, path, O_PATH | O_CLOEXEC, 0);
	struct ss_landlock_rule rule = {rights, (int32_t)fd};
	struct stat st;
	long answer;

	if (fd < 0)
		return (int)fd;
	answer = ss_child_stat((int32_t)fd, &st);
	if (!answer) {
		if (!S_ISDIR(st.st_mode))
			rule.allowed = of_file;
		answer = ss_sys4(SYS_landlock_add_rule, ruleset, SS_LANDLOCK_PATH_BENEATH, &rule, 0);
	}
	(void)ss_sys1(SYS_close, fd); /* an O_PATH descriptor: there is nothing to lose */
	return (int)answer;
}
