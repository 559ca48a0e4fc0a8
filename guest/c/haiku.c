/* haiku.c: an actor in plain C, without a library: it answers every message with a haiku about it.
 *
 * Build, from the folder guest/ (`cargo xtask guests` does the same):
 *     clang-19 --target=wasm32-unknown-unknown -std=c11 -O2 -ffreestanding -fno-builtin -nostdlib -Wall -Wextra -Werror \
 *         -Iinclude -Wl,--no-entry -Wl,-s -Wl,-z,stack-size=16384 -o wasm/c_example.wasm c/haiku.c
 *
 * It keeps one number from message to message, in a static: that is linear memory, and so it is in every snapshot.
 */
#include "driftwood.h"

#define MESSAGE_BYTES_MAX 16384
#define JSON_BYTES_MAX (6 * MESSAGE_BYTES_MAX + 256)
#define RENDERING_BYTES_MAX (JSON_BYTES_MAX + 4096)
#define TOKENS_MAX RENDERING_BYTES_MAX

/* Own error codes: `handle` returns them, above 0. */
enum { FAILED_BY_HOST = 1, MESSAGE_TOO_LONG = 2 };

static char message[MESSAGE_BYTES_MAX];
static char json[JSON_BYTES_MAX];
static char rendering[RENDERING_BYTES_MAX];
static uint32_t tokens[TOKENS_MAX];
static uint32_t haikus;

struct text {
  char *bytes;
  uint32_t length;
};

static uint32_t length_of(const char *words) {
  uint32_t length = 0;
  while (words[length]) length++;
  return length;
}

static void put(struct text *out, char byte) { out->bytes[out->length++] = byte; }

static void put_words(struct text *out, const char *words) {
  for (; *words; words++) put(out, *words);
}

/* Bytes as the inside of a JSON string: at most six bytes each. */
static void put_escaped(struct text *out, const char *bytes, uint32_t length) {
  for (uint32_t i = 0; i < length; i++) {
    unsigned char byte = (unsigned char)bytes[i];
    if (byte == '"' || byte == '\\') {
      put(out, '\\');
      put(out, (char)byte);
    } else if (byte < ' ') {
      put_words(out, "\\u00");
      put(out, "0123456789abcdef"[byte >> 4]);
      put(out, "0123456789abcdef"[byte & 15]);
    } else {
      put(out, (char)byte);
    }
  }
}

static void put_number(struct text *out, uint32_t number) {
  if (number >= 10) put_number(out, number / 10);
  put(out, (char)('0' + number % 10));
}

static int32_t fail(const char *why, int32_t code) {
  dw_log(0, why, length_of(why));
  return code;
}

/* The prompt for this message as tokens; how many, or an error below 0. */
static int32_t prompt(uint32_t message_bytes) {
  struct text out = {json, 0};
  put_words(&out, "[{\"role\":\"user\",\"content\":\"Write a haiku about this: ");
  put_escaped(&out, message, message_bytes);
  put_words(&out, "\"}]");
  int32_t bytes = dw_chat_template(0, 0, json, out.length, 1, rendering, sizeof rendering);
  if (bytes < 0) return bytes;
  if ((uint32_t)bytes > sizeof rendering) return DW_BAD_ARGUMENT;
  int32_t count = dw_tokenize(0, 0, rendering, (uint32_t)bytes, DW_ADD_SPECIAL | DW_PARSE_SPECIAL, tokens, TOKENS_MAX);
  return count > TOKENS_MAX ? DW_BAD_ARGUMENT : count;
}

static int32_t write_haiku(uint32_t message_bytes) {
  int32_t count = prompt(message_bytes);
  if (count < 0) return count;
  int32_t session = dw_session_open(0, 0, DW_KV_F16, 0);
  if (session < 0) return session;
  int32_t answer = dw_prefill(session, tokens, (uint32_t)count);
  if (answer >= 0) {
    dw_generate_options options = {.max_tokens = 64, .flags = DW_STREAM};
    answer = dw_generate(session, &options);
  }
  dw_session_close(session);
  return answer;
}

DW_EXPORT(driftwood_abi) int32_t driftwood_abi(void) { return DRIFTWOOD_ABI; }

DW_EXPORT(handle) int32_t handle(void) {
  int32_t bytes = dw_receive(message, sizeof message);
  if (bytes < 0) return fail("the message can't be received", FAILED_BY_HOST);
  if ((uint32_t)bytes > sizeof message) return fail("the message is longer than 16384 bytes", MESSAGE_TOO_LONG);
  if (write_haiku((uint32_t)bytes) < 0) return fail("the host refused a call", FAILED_BY_HOST);
  char line[32];
  struct text out = {line, 0};
  put_words(&out, "\n(haiku ");
  put_number(&out, ++haikus);
  put_words(&out, ")\n");
  dw_reply(line, out.length);
  return 0;
}
