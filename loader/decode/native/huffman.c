/* Entropy-coded bits to coefficients (ITU-T T.81, annex F.2); blocks outside the box are skipped.
 *
 * Three things make it fast. Stuffed zero bytes are removed a chunk at a time, so that eight bytes can be loaded at
 * once without looking for markers. One look-up gives a code, its run and, when both fit in LOOKUP bits, its value.
 * When a block is skipped, one look-up takes as many whole codes as fit.
 */
#include "jpeg.h"

#include <string.h>

enum { LOOKUP = 10, IN_A_ROW = 56 / LOOKUP, ENTRIES = 1 << LOOKUP };
enum { KEPT_TABLES = 8, LONGEST_CODE = 16, END_OF_BLOCK = 1 << 15 };

struct DecodingTable {
    HuffmanSpec spec;
    bool dc;
    unsigned long last_use;
    /* Indexed by the next LOOKUP bits. Bits 0-7: number of bits to take, 0 for a longer code. Bits 8-11: run. Bits
     * 12-15: size, the bits of the value still to be taken. Bits 16-31: the value, where the look-up has all of it. */
    int32_t entry[ENTRIES];
    /* The same index. Bits 0-7: number of bits of the whole codes that fit, 0 for none. Bits 8-14: coefficients that
     * they skip. Bit 15: they end the block. */
    uint16_t skip[ENTRIES];
    /* For longer codes, by length: the first value that is too large for it, left-aligned in 16 bits, and the distance
     * from its codes to their symbols. */
    uint32_t bound[LONGEST_CODE + 2];
    int offset[LONGEST_CODE + 1];
};

/* ---- tables ---- */

static int extend(int bits, int size) { return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

/* Fill the entries whose index begins with a code. In DC tables a symbol is a size, in AC tables run << 4 | size. */
static void enter_code(DecodingTable *table, int code, int length, int symbol) {
    int run = table->dc ? 0 : symbol >> 4, size = table->dc ? symbol : symbol & 15;
    int room = LOOKUP - length;
    for (int rest = 0; rest < 1 << room; rest++) {
        int32_t entry = length | run << 8 | size << 12;
        if (size && size <= room) {
            int value = extend(rest >> (room - size), size);
            entry = (int32_t)((uint32_t)value << 16) | run << 8 | (length + size);
        }
        table->entry[code << room | rest] = entry;
    }
}

static bool make_entries(DecodingTable *table) {
    const HuffmanSpec *spec = &table->spec;
    int code = 0, next = 0;
    memset(table->entry, 0, sizeof table->entry);
    for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
        table->offset[length] = next - code;
        for (int i = 0; i < spec->num_codes[length]; i++, code++, next++) {
            if (code >= 1 << length || (table->dc && spec->symbols[next] > 15)) return false;
            if (length <= LOOKUP) enter_code(table, code, length, spec->symbols[next]);
        }
        table->bound[length] = (uint32_t)code << (LONGEST_CODE - length);
    }
    return true;
}

/* Chain AC entries as long as whole codes, with their values, fit in LOOKUP bits. */
static void make_skips(DecodingTable *table) {
    for (int bits = 0; bits < ENTRIES; bits++) {
        int taken = 0, passed = 0;
        bool ends = false;
        while (!ends) {
            int32_t entry = table->entry[(bits << taken) & (ENTRIES - 1)];
            int length = entry & 0xFF, run = entry >> 8 & 15, size = entry >> 12 & 15, value = entry >> 16;
            if (!length || taken + length + size > LOOKUP || passed + run + 1 >= BLOCK_SIZE) break;
            taken += length + size;
            ends = !value && !size && run != 15;
            passed += ends ? 0 : run + 1;
        }
        table->skip[bits] = (uint16_t)(taken | passed << 8 | (ends ? END_OF_BLOCK : 0));
    }
}

/* Return the table of a DHT segment, or NULL if its codes are impossible. Images of a dataset often share their tables,
 * so each thread keeps its last ones. */
const DecodingTable *decoding_table(const HuffmanSpec *spec, bool dc) {
    static _Thread_local DecodingTable kept[KEPT_TABLES];
    static _Thread_local unsigned long uses;
    DecodingTable *oldest = kept;
    uses++;
    for (DecodingTable *table = kept; table < kept + KEPT_TABLES; table++) {
        if (table->last_use && table->dc == dc && !memcmp(&table->spec, spec, sizeof *spec)) {
            table->last_use = uses;
            return table;
        }
        if (table->last_use < oldest->last_use) oldest = table;
    }
    oldest->spec = *spec;
    oldest->dc = dc;
    oldest->last_use = 0;
    if (!make_entries(oldest)) return NULL;
    if (!dc) make_skips(oldest);
    oldest->last_use = uses;
    return oldest;
}

/* ---- bytes ---- */

/* Move on to the next chunk of unstuffed bytes. The data is followed by zeros, enough for any block that reads on. */
static void load_chunk(BitReader *reader) {
    size_t left = (size_t)(reader->end - reader->at);
    memmove(reader->bytes, reader->at, left);
    uint8_t *to = reader->bytes + left, *full = reader->bytes + CHUNK;
    while (to < full && !reader->exhausted) {
        const uint8_t *from = reader->source;
        size_t room = (size_t)(full - to), there = (size_t)(reader->source_end - from);
        size_t most = room < there ? room : there;
        const uint8_t *escape = memchr(from, 0xFF, most);
        size_t plain = escape ? (size_t)(escape - from) : most;
        memcpy(to, from, plain);
        to += plain;
        reader->source += plain;
        if (!escape) {
            reader->exhausted = reader->source == reader->source_end;
        } else if (reader->source_end - escape >= 2 && escape[1] == 0) {
            *to++ = 0xFF;
            reader->source += 2;
        } else {
            reader->exhausted = true;
        }
    }
    memset(to, 0, PADDING);
    reader->at = reader->bytes;
    reader->end = to;
    reader->limit = reader->exhausted ? to - 8 : to - LOOKAHEAD;
}

/* Load more when a block begins near the end of the chunk. Returns false if the data had ended before. */
static bool more_bytes(BitReader *reader) {
    if (!reader->exhausted) load_chunk(reader);
    return within_bytes(reader);
}

void start_reading(BitReader *reader, const uint8_t *source, const uint8_t *source_end) {
    reader->source = source;
    reader->source_end = source_end;
    reader->at = reader->end = reader->bytes;
    reader->buffer = 0;
    reader->bits = 0;
    reader->exhausted = false;
    load_chunk(reader);
}

bool within_bytes(const BitReader *reader) { return reader->at - (reader->bits >> 3) <= reader->end; }

/* Continue behind restart marker `number` (0..7). Returns false if another marker comes next. */
bool next_interval(BitReader *reader, int number) {
    const uint8_t *at = reader->source;
    if (!reader->exhausted || !within_bytes(reader) || reader->source_end - at < 2) return false;
    if (at[0] != 0xFF || at[1] != 0xD0 + number) return false;
    start_reading(reader, at + 2, reader->source_end);
    return true;
}

/* ---- blocks ---- */

#define REFILL()                                                                     \
    do {                                                                             \
        uint64_t next_;                                                              \
        memcpy(&next_, at, sizeof next_);                                            \
        buffer |= __builtin_bswap64(next_) >> bits;                                  \
        at += (63 - bits) >> 3;                                                      \
        bits |= 56;                                                                  \
    } while (0)
#define TAKE(n) (buffer <<= (n), bits -= (n))
#define PEEK(n) ((int)(buffer >> (64 - (n))))

/* Find a code longer than LOOKUP bits. Returns its length, or 0, and sets its entry, without a value. */
static int long_code(const DecodingTable *table, uint64_t buffer, int32_t *entry) {
    uint32_t next = (uint32_t)(buffer >> (64 - LONGEST_CODE));
    for (int length = LOOKUP + 1; length <= LONGEST_CODE; length++)
        if (next < table->bound[length]) {
            int symbol = table->spec.symbols[(table->offset[length] + (int)(next >> (LONGEST_CODE - length))) & 0xFF];
            *entry = table->dc ? symbol << 12 : (symbol >> 4) << 8 | (symbol & 15) << 12;
            return length;
        }
    return 0;
}

/* Read a code into `run` and `value`; `value` is 0 for the end of the block and for a run of 16 zeros.
 * A macro, since it keeps the reader's state in local variables of the calling function: in registers. */
#define READ_CODE(table, run, value)                                                 \
    do {                                                                             \
        if (bits < 32) REFILL();                                                     \
        int32_t entry_ = (table)->entry[PEEK(LOOKUP)];                               \
        int length_ = entry_ & 0xFF;                                                 \
        (value) = entry_ >> 16;                                                      \
        if (__builtin_expect(!(value), 0)) {                                         \
            if (!length_ && !(length_ = long_code((table), buffer, &entry_))) return FAILED; \
            TAKE(length_);                                                           \
            int size_ = entry_ >> 12 & 15;                                           \
            if (size_) {                                                             \
                (value) = extend(PEEK(size_), size_);                                \
                TAKE(size_);                                                         \
            }                                                                        \
        } else {                                                                     \
            TAKE(length_);                                                           \
        }                                                                            \
        (run) = entry_ >> 8 & 15;                                                    \
    } while (0)

#define BEGIN_BLOCK()                                                                \
    if (__builtin_expect(reader->at > reader->limit, 0) && !more_bytes(reader)) return FAILED; \
    const uint8_t *at = reader->at;                                                  \
    uint64_t buffer = reader->buffer;                                                \
    int bits = reader->bits, run, value

#define END_BLOCK()                                                                  \
    do {                                                                             \
        reader->at = at;                                                             \
        reader->buffer = buffer;                                                     \
        reader->bits = bits;                                                         \
    } while (0)

#define FAILED -1
int read_block(BitReader *reader, const DecodingTable *dc, const DecodingTable *ac, int *mean, int16_t *coefficients) {
    BEGIN_BLOCK();
    READ_CODE(dc, run, value);
    *mean = (int16_t)(*mean + value);
    coefficients[0] = (int16_t)*mean;
    int k = 1, last = 0;
    for (;;) {
        REFILL(); /* 56 bits: enough for IN_A_ROW look-ups without a check in between */
#pragma GCC unroll 5
        for (int i = 0; i < IN_A_ROW; i++) {
            int32_t entry = ac->entry[PEEK(LOOKUP)];
            if (__builtin_expect(entry < 1 << 16 && entry >= 0, 0)) goto without_value;
            TAKE(entry & 0xFF);
            k += entry >> 8 & 15;
            if (__builtin_expect(k >= BLOCK_SIZE, 0)) return FAILED;
            coefficients[natural_order[k]] = (int16_t)(entry >> 16);
            last = k++;
            if (k == BLOCK_SIZE) goto done;
        }
        continue;
    without_value:
        READ_CODE(ac, run, value);
        if (!value && run != 15) break;
        k += run;
        if (k >= BLOCK_SIZE) {
            if (value) return FAILED;
            break;
        }
        if (value) {
            coefficients[natural_order[k]] = (int16_t)value;
            last = k;
        }
        if (++k >= BLOCK_SIZE) break;
    }
done:
    END_BLOCK();
    return last;
}
#undef FAILED

#define FAILED false
bool skip_block(BitReader *reader, const DecodingTable *dc, const DecodingTable *ac, int *mean) {
    BEGIN_BLOCK();
    READ_CODE(dc, run, value);
    *mean = (int16_t)(*mean + value);
    for (int k = 1; k < BLOCK_SIZE;) {
        if (bits < 32) REFILL();
        int skip = ac->skip[PEEK(LOOKUP)], passed = skip >> 8 & 0x7F, ends = skip >> 15;
        /* A full block has no end code: bits that look like one belong to the next block. */
        if (__builtin_expect((skip & 0xFF) && k + passed + ends <= BLOCK_SIZE, 1)) {
            TAKE(skip & 0xFF);
            k += passed;
            if (ends) break;
            continue;
        }
        READ_CODE(ac, run, value);
        if (!value && run != 15) break;
        k += run + 1;
        if (k > BLOCK_SIZE) return FAILED;
    }
    END_BLOCK();
    return true;
}
#undef FAILED
