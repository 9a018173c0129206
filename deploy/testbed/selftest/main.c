#include <stdio.h>
int main(void){printf("selftest\n");return 0;}
