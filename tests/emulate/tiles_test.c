/* A library that multiplies two tiles as conv_amx.h does, for the test of tiles.c: QC_ROWS and the other sizes say how they are configured. */
#include <stdint.h>
#include <string.h>

typedef struct sizes {
  int32_t rows_of_sums, bytes_of_sums, rows_of_a, bytes_of_a, rows_of_b, bytes_of_b;
} sizes;

static void configure(const sizes *s) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } c = {.palette = 1};
  c.bytes[1] = (uint16_t)s->bytes_of_sums, c.rows[1] = (uint8_t)s->rows_of_sums;
  c.bytes[4] = (uint16_t)s->bytes_of_a, c.rows[4] = (uint8_t)s->rows_of_a;
  c.bytes[7] = (uint16_t)s->bytes_of_b, c.rows[7] = (uint8_t)s->rows_of_b;
  __asm__ volatile("ldtilecfg %0" : : "m"(c));
}

/* sums: `down` bytes from row to row, so are a and b. `times`: how often they are multiplied. */
void product(const sizes *s, const uint8_t *a, const int8_t *b, int32_t *sums, const int64_t down[3], int times) {
  configure(s);
  __asm__ volatile("tilezero %%tmm1" : :);
  for (int i = 0; i < times; i++) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm4" : : "r"(a), "r"(down[0]) : "memory");
    __asm__ volatile("tileloadd -64(%0,%1,1), %%tmm7" : : "r"(b + 64), "r"(down[1]) : "memory");
    __asm__ volatile("tdpbusd %%tmm7, %%tmm4, %%tmm1" : :);
  }
  __asm__ volatile("tilestored %%tmm1, 8192(%0,%1,2)" : : "r"(sums - 2048), "r"(down[2] / 2) : "memory");
  __asm__ volatile("tilerelease" : :);
}

/* Every form of an address behind a tile instruction, [0], and by itself, [1]. */
#define QC_BOTH(i, text) \
  __asm__ volatile("mov $0x12345678, %%r12\n\tmov $-77, %%r13\n\t" \
                   "tilezero %%tmm1\n\tlea " text "\n\tmov %%r9, %0\n\tmov %%rdx, %1\n\t" \
                   "lea " text "\n\tmov %%r9, %2\n\tmov %%rdx, %3\n0:" \
                   : "=m"(found[0][i][0]), "=m"(found[0][i][1]), "=m"(found[1][i][0]), "=m"(found[1][i][1]) \
                   : "a"((int64_t)0x7654321000), "D"((int64_t)-5000) \
                   : "rdx", "r9", "r12", "r13")

int addresses(const sizes *s, int64_t found[2][9][2]) {
  configure(s);
  QC_BOTH(0, "(%%rax), %%r9");
  QC_BOTH(1, "8(%%rax), %%rdx");
  QC_BOTH(2, "-70000(%%r12), %%r9");
  QC_BOTH(3, "(%%r12,%%rdi), %%r9");
  QC_BOTH(4, "-3(%%r13,%%r12,4), %%rdx");
  QC_BOTH(5, "0x12345(%%r13,%%rax,8), %%r9");
  QC_BOTH(6, "0x80(,%%rdi,2), %%r9");
  QC_BOTH(7, "0f(%%rip), %%rdx");
  QC_BOTH(8, "(%%rsp), %%r9");
  __asm__ volatile("tilerelease" : :);
  return 9;
}

void never_configured(void) { __asm__ volatile("tilezero %%tmm1" : :); }
void another_instruction(void) { __asm__ volatile("ud2"); }
