/*
 * Sends a message with descriptors (SCM_RIGHTS, unix(7)), by raw system call: part of the helper, which has no
 * libc, and of the core.
 *
 * Lengths are size_t for the kernel. musl has 32 bits of each, and the rest as padding of its own, at other places
 * of struct msghdr: so members are set by name, and what is not named is 0.
 */

/* 0 or an errno. Never waits: who does not read us is not told. */
static int
ss_message_send(int32_t socket, const void *bytes, size_t size, const int32_t *fds, uint32_t count)
{
	union {
		struct cmsghdr header;
		unsigned char room[CMSG_SPACE(SS_MESSAGE_FDS * sizeof(int32_t))];
	} extras = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {(void *)(uintptr_t)bytes, size};
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};

	if (count) {
		header.msg_control = &extras;
		header.msg_controllen = (unsigned)CMSG_SPACE(count * sizeof(int32_t));
		extras.header.cmsg_len = (unsigned)CMSG_LEN(count * sizeof(int32_t));
		memcpy(CMSG_DATA(&extras.header), fds, count * sizeof(int32_t));
	}
	return ss_child_error(ss_sys3(SYS_sendmsg, socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT));
}
