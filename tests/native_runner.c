/* Runs one call of a kernel on another machine's emulator: reads a problem from a file, writes the memory behind it back.

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

int main(int argc, char **argv) {
  int64_t sizes[3];
  char family[16];
  FILE *f = argc == 3 ? fopen(argv[2], "r+b") : NULL;
  const qc_kernels *k = f ? qc_exactly(argv[1]) : NULL;
  if (!k || fread(sizes, sizeof sizes, 1, f) != 1 || fread(family, sizeof family, 1, f) != 1) return 2;
  char *args = malloc((size_t)sizes[2]);
  int64_t *pointers = malloc(8 * (size_t)sizes[0]);
  char *memory = aligned_alloc(64, (size_t)sizes[1]);
  if (fread(args, (size_t)sizes[2], 1, f) != 1 || fread(pointers, 8, (size_t)sizes[0], f) != (size_t)sizes[0]) return 3;
  long at = ftell(f);
  if (fread(memory, (size_t)sizes[1], 1, f) != 1) return 4;
  for (int64_t i = 0; i < sizes[0]; i++) {
    int64_t offset;
    char *address;
    memcpy(&offset, args + pointers[i], 8);
    address = offset < 0 ? NULL : memory + offset;
    memcpy(args + pointers[i], &address, 8);
  }
  if (run(k, family, args) < 0) return 5;
  fseek(f, at, SEEK_SET);
  return fwrite(memory, (size_t)sizes[1], 1, f) == 1 && fclose(f) == 0 ? 0 : 6;
}
