/* What the test programs share: a call whose result is known, and a condition that must hold. Each ends the program. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windlass.h>

#define FAIL(...) \
    do { \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
        fprintf(stderr, __VA_ARGS__); \
        fprintf(stderr, "\n"); \
        exit(1); \
    } while (0)

#define CHECK(condition) \
    do { \
        if (!(condition)) \
            FAIL("not so: %s", #condition); \
    } while (0)

#define OK(call) \
    do { \
        windlass_result_t result_ = (call); \
        if (result_ != WINDLASS_SUCCESS) \
            FAIL("%s: %d %s", #call, (int)result_, windlass_last_error()); \
    } while (0)

/* The call fails with this code, and its message says these words. */
#define REFUSED(code, words, call) \
    do { \
        windlass_result_t result_ = (call); \
        if (result_ != (code)) \
            FAIL("%s: %d instead of %s: %s", #call, (int)result_, #code, windlass_last_error()); \
        if (strstr(windlass_last_error(), (words)) == NULL) \
            FAIL("%s: `%s` does not say `%s`", #call, windlass_last_error(), (words)); \
    } while (0)
