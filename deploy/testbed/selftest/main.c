// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * Shows what a program sees when memory moves under RDMA, for each way of importing it, and fails where that is not what it should be.
 *
 * At the end comes the canary: the expectations of a dynamic importer, held against a pinned one. If no row differed, the table could not fail.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "selftest.h"

void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "selftest: error: ");
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "\n");
	va_end(arguments);
	exit(1);
}

static bool holds(struct link *link, const struct row *row, const char *importer, int expectations, char *cell)
{
	set_importer(importer);
	row->run(link, cell);
	return strcmp(cell, row->expected[expectations]) == 0;
}

int main(void)
{
	const char *host = getenv("WINDLASS_TESTBED_HOST");
	struct link link = {};
	char cell[CELL];
	int wrong = 0, differ = 0;

	/* One process drives both ends; the second host only lends its device. */
	if (!host || strcmp(host, "0") != 0)
		return 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	link_open(&link, "rxe0_0", "rxe1_0");
	for (int row = 0; row < row_count; row++) {
		printf("%s\n", rows[row].name);
		for (int mode = 0; mode < MODES; mode++) {
			bool right = holds(&link, &rows[row], modes[mode], mode, cell);

			printf("  %-10s %s\n", modes[mode], cell);
			if (!right)
				printf("    WRONG, this was expected: %s\n", rows[row].expected[mode]);
			wrong += !right;
		}
	}
	for (int row = 0; row < row_count; row++)
		differ += !holds(&link, &rows[row], "pinned", 0, cell);
	printf("canary: a pinned importer taken for a dynamic one differs in %d rows\n", differ);
	if (differ < 7) {
		printf("the table is blind: at least 7 should differ\n");
		return 1;
	}
	printf("%d of %d cells as expected\n", row_count * MODES - wrong, row_count * MODES);
	return wrong ? 1 : 0;
}
