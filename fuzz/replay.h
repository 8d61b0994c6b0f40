/*
 * Instead of a fuzzer: runs the target once for each file that is named. SAID is what the target has to say
 * afterwards. For -DFUZZ_MAIN.
 */

#include <stdint.h>
#include <stdio.h>

int
main(int argc, char **argv)
{
	static uint8_t bytes[1 << 20];
	int i;

	for (i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");

		CHECK(file);
		LLVMFuzzerTestOneInput(bytes, fread(bytes, 1, sizeof(bytes), file));
		CHECK(!fclose(file));
		printf("%s: %s\n", argv[i], SAID);
		CHECK(!fflush(stdout)); /* the next input may start processes, which must not say it again */
	}
	return 0;
}
