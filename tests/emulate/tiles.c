/* AMX's tiles on a processor that has none, for tests: the library of kernels is what users build, its tile instructions are unknown to the
   processor, and the handler of that signal computes what Intel's manual says. It ends the process where the manual has an exception: a
   tile that no configuration has, sizes that do not fit.

   Instructions: ldtilecfg, tilerelease, tileloadd, tilestored, tilezero, tdpbusd. Every thread has tiles of its own. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static _Thread_local struct {
  int configured;
  uint16_t bytes[8];
  uint8_t rows[8];
  uint8_t data[8][16][64];
} tiles;

/* The operands of an instruction: fields of its bytes, and a place in memory as base + index. */
typedef struct operands {
  int reg, rm;
  uint8_t *base;
  int64_t index;
  int64_t length; /* of ModRM and what follows */
} operands;

static void refuse(const char *what) {
  fprintf(stderr, "emulated tiles: %s\n", what);
  abort();
}

static void *address(uint64_t at) { return (void *)(uintptr_t)at; }

static int64_t displacement(const uint8_t *at, int bytes) {
  int32_t wide;
  memcpy(&wide, at, sizeof wide);
  return bytes == 0 ? 0 : bytes == 1 ? (int8_t)at[0] : wide;
}

static const int names[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/* What stands from ModRM on: for memory SIB and a displacement. `more`: 4, 2 and 1 where reg, index and base are registers from r8 on. */
static operands decoded(const uint8_t *at, int more, const greg_t *g) {
  int mode = at[0] >> 6, rm = at[0] & 7, more_index = more & 2 ? 8 : 0, more_base = more & 1 ? 8 : 0;
  operands o = {.reg = (at[0] >> 3 & 7) + (more & 4 ? 8 : 0), .rm = rm, .length = 1};
  if (mode == 3) return o;
  int size = mode == 1 ? 1 : mode == 2 ? 4 : 0, based = 1;
  if (rm == 4) {
    int index = (at[1] >> 3 & 7) + more_index;
    rm = at[1] & 7;
    if (index != 4) o.index = (int64_t)((uint64_t)g[names[index]] << (at[1] >> 6));
    o.length++;
    if (mode == 0 && rm == 5) size = 4, based = 0;
  } else if (mode == 0 && rm == 5) {
    o.base = address((uint64_t)(uintptr_t)(at + 5) + (uint64_t)displacement(at + 1, 4));
    o.length = 5;
    return o;
  }
  uint64_t moved = (uint64_t)displacement(at + o.length, size) + (based ? (uint64_t)g[names[rm + more_base]] : 0);
  o.base = address(moved);
  o.length += size;
  return o;
}

static void configure(const uint8_t *c) {
  if (c[0] != 1 || c[1] != 0) refuse("a configuration of another palette, or that starts in the middle");
  for (int i = 2; i < 16; i++)
    if (c[i]) refuse("reserved bytes are no zeros");
  for (int i = 0; i < 8; i++) {
    memcpy(&tiles.bytes[i], c + 16 + 2 * i, 2);
    tiles.rows[i] = c[48 + i];
    if (tiles.bytes[i] > 64 || tiles.rows[i] > 16 || !tiles.bytes[i] != !tiles.rows[i]) refuse("a tile of such a size");
  }
  memset(tiles.data, 0, sizeof tiles.data);
  tiles.configured = 1;
}

static int known(int tile) {
  if (!tiles.configured || !tiles.rows[tile]) refuse("a tile that is not configured");
  return tile;
}

static void move(const operands *o, int store) {
  int t = known(o->reg);
  if (!store) memset(tiles.data[t], 0, sizeof tiles.data[t]);
  for (int row = 0; row < tiles.rows[t]; row++) {
    uint8_t *at = o->base + row * o->index;
    memcpy(store ? at : tiles.data[t][row], store ? tiles.data[t][row] : at, tiles.bytes[t]);
  }
}

/* c[m][n] += the sum over k of a[m][k] * b[k / 4][4 n + k % 4], a unsigned, b signed, modulo 2^32: in each row what vpdpbusd computes. */
__attribute__((target("avx512f,avx512vnni"))) static void dot(int c, int a, int b) {
  if (tiles.rows[known(c)] != tiles.rows[known(a)] || tiles.bytes[c] != tiles.bytes[known(b)] || tiles.bytes[a] != 4 * tiles.rows[b])
    refuse("a product of tiles that do not fit");
  if (tiles.bytes[a] % 4 || tiles.bytes[b] % 4) refuse("a product of parts of four bytes");
  for (int k = 0; k < tiles.rows[b]; k++) {
    __m512i weights = _mm512_loadu_si512(tiles.data[b][k]);
    for (int m = 0; m < tiles.rows[c]; m++) {
      int32_t four;
      memcpy(&four, tiles.data[a][m] + 4 * k, sizeof four);
      __m512i sums = _mm512_loadu_si512(tiles.data[c][m]);
      _mm512_storeu_si512(tiles.data[c][m], _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(four), weights));
    }
  }
}

/* C4, two bytes of prefix, the opcode, ModRM. The length of the instruction; 0: none of these. */
static int64_t emulated(const uint8_t *at, const greg_t *g) {
  if (at[0] != 0xC4 || (at[1] & 31) != 2 || (at[2] & 0x84)) return 0;
  int opcode = at[3], prefix = at[2] & 3, registers = at[4] >> 6 == 3; /* prefix: 0 none, 1 66, 2 F3, 3 F2 */
  operands o = decoded(at + 4, ~at[1] >> 5 & 3, g);
  if (opcode == 0x49 && prefix == 0 && !registers)
    configure(o.base + o.index);
  else if (opcode == 0x49 && prefix == 0 && at[4] == 0xC0)
    memset(&tiles, 0, sizeof tiles);
  else if (opcode == 0x49 && prefix == 3 && registers)
    memset(tiles.data[known(o.reg)], 0, sizeof tiles.data[0]);
  else if (opcode == 0x4B && (prefix == 3 || prefix == 2) && (at[4] & 7) == 4 && !registers)
    move(&o, prefix == 2);
  else if (opcode == 0x5E && prefix == 1 && registers)
    dot(o.reg, o.rm, (~at[2] >> 3) & 15);
  else
    return 0;
  return 4 + o.length;
}

/* lea of 64 bits, which stands between tile instructions, changes a register and nothing else. Its length; 0: another instruction. */
static int64_t moved_address(const uint8_t *at, greg_t *g) {
  if ((at[0] & 0xF8) != 0x48 || at[1] != 0x8D) return 0;
  operands o = decoded(at + 2, at[0] & 7, g);
  g[names[o.reg]] = (greg_t)((uint64_t)(uintptr_t)o.base + (uint64_t)o.index);
  return 2 + o.length;
}

/* One signal does all tile instructions that follow one another: the signal takes longer than what it computes. */
static void handle(int number, siginfo_t *info, void *context) {
  greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
  int64_t length = emulated(address((uint64_t)g[REG_RIP]), g);
  (void)info;
  if (length == 0) signal(number, SIG_DFL); /* the instruction meets the signal again, and the process ends */
  while (length) {
    g[REG_RIP] += length;
    const uint8_t *next = address((uint64_t)g[REG_RIP]);
    length = emulated(next, g);
    if (!length) length = moved_address(next, g);
  }
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGILL, &action, NULL);
}
