/* Runs calls of kernels on another machine's emulator. For each line on stdin it reads a problem from the file that its second argument
   names, writes the memory behind it back, and says 0, or the number of what failed.

   The file: int64 count of pointers, of bytes of memory, of bytes of the struct; the name of the family (16 bytes); the struct, whose
   pointers are offsets into the memory; the offsets of the pointers in the struct (-1 in the struct: NULL); the memory. */
#include "qc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t run(const qc_kernels *k, const char *family, const void *args) {
#define RUN(F) \
  if (strcmp(family, #F) == 0) { \
    int64_t units = k->F##_units(args); \
    k->F(args, 0, units / 2); \
    k->F(args, units / 2, units); \
    return units; \
  }
  QC_FAMILIES(RUN)
  return -1;
}

static int solve(const qc_kernels *k, FILE *f) {
  int64_t sizes[3];
  char family[16];
  if (fread(sizes, sizeof sizes, 1, f) != 1 || fread(family, sizeof family, 1, f) != 1) return 2;
  char *args = malloc((size_t)sizes[2]);
  int64_t *pointers = malloc(8 * (size_t)sizes[0]);
  char *memory = aligned_alloc(64, (size_t)sizes[1]);
  int failed = 0;
  if (fread(args, (size_t)sizes[2], 1, f) != 1 || fread(pointers, 8, (size_t)sizes[0], f) != (size_t)sizes[0]) failed = 3;
  long at = ftell(f);
  if (!failed && fread(memory, (size_t)sizes[1], 1, f) != 1) failed = 4;
  for (int64_t i = 0; !failed && i < sizes[0]; i++) {
    int64_t offset;
    char *address;
    memcpy(&offset, args + pointers[i], 8);
    address = offset < 0 ? NULL : memory + offset;
    memcpy(args + pointers[i], &address, 8);
  }
  if (!failed && run(k, family, args) < 0) failed = 5;
  if (!failed && (fseek(f, at, SEEK_SET) != 0 || fwrite(memory, (size_t)sizes[1], 1, f) != 1)) failed = 6;
  free(args);
  free(pointers);
  free(memory);
  return failed;
}

int main(int argc, char **argv) {
  const qc_kernels *k = argc == 3 ? qc_exactly(argv[1]) : NULL;
  if (!k) return 2;
  while (getchar() == '\n') {
    FILE *f = fopen(argv[2], "r+b");
    int failed = f ? solve(k, f) : 1;
    if (f && fclose(f) != 0 && !failed) failed = 7;
    printf("%d\n", failed);
    fflush(stdout);
  }
  return 0;
}
