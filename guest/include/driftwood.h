/* driftwood.h: the contract between an actor (a core Wasm module) and its host. This file is its only copy.
 *
 * An actor is a module that exports
 *     memory                          its one linear memory
 *     int32_t driftwood_abi(void)     returns DRIFTWOOD_ABI
 *     int32_t handle(void)            called once a message; 0, or an own error code above 0
 * may export
 *     int32_t driftwood_model_changed(void)
 *                                     called between messages, after the setting "model" was changed; answers as handle does, and if not
 *                                     with 0 the model stays. Close the sessions on the former model here and open others: the host keeps
 *                                     the keys and values of what is closed, for sessions that get the same tokens when the model comes back.
 * and imports any of the functions below from the module "driftwood", and nothing else.
 *
 * Between messages its whole state is its linear memory, its mutable globals and its sessions; that is what a snapshot holds.
 * Pointers are offsets into linear memory; they and lengths are unsigned 32-bit numbers. Structures are little-endian, without
 * padding, aligned to 4. A function that returns int32_t answers 0 or more, or a dw_error below 0. A function that fills a buffer
 * answers the length that the whole answer has and writes as much of it as fits, so that a call with capacity 0 asks for the length.
 */
#ifndef DRIFTWOOD_H
#define DRIFTWOOD_H

#include <stdint.h>

/* The contract's version. A host refuses a module that returns another. Functions are added, never changed. */
#define DRIFTWOOD_ABI 1

#ifdef __wasm__
#define DW_IMPORT(name) __attribute__((import_module("driftwood"), import_name(#name)))
#define DW_EXPORT(name) __attribute__((export_name(#name)))
#else
#define DW_IMPORT(name)
#define DW_EXPORT(name)
#endif

typedef enum dw_error {
  DW_OUT_OF_BOUNDS = -1,   /* a range leaves the linear memory */
  DW_BAD_ARGUMENT = -2,    /* a value that the function does not take */
  DW_NO_SUCH_SESSION = -3, /* the handle is not open */
  DW_NO_SUCH_MODEL = -4,   /* this host has no model of that name, or this actor may not use it */
  DW_LIMIT = -5,           /* a limit is reached: the actor's of sessions or KV memory, or the host's of kernels */
  DW_CONTEXT_FULL = -6,    /* the session's context has no room for what was asked */
  DW_TOKEN_LIMIT = -7,     /* this message's limit of tokens is reached */
  DW_BAD_TEXT = -8,        /* text that is not UTF-8, or JSON of another form */
  DW_NOT_FOUND = -9,       /* no such setting */
  DW_INTERRUPTED = -10,    /* the user asked to end this reply; keep what there is and return */
  DW_MODEL_ERROR = -11,    /* the host failed to compute; the log says why */
  DW_NO_GPU = -12,         /* this host has no GPU, or none that can share the actor's memory */
  DW_BAD_KERNEL = -13,     /* no WGSL, or a kernel that the host does not let through; the log says why */
  DW_UNALIGNED = -14       /* a binding that does not begin at a multiple of DW_BINDING_ALIGN or has no multiple of 4 bytes */
} dw_error;

/* --- messages ------------------------------------------------------------------------------------------------------- */

/* The message being handled. */
DW_IMPORT(receive) int32_t dw_receive(void *buffer, uint32_t capacity);

/* Appends bytes (UTF-8) to the reply; they are streamed to whoever waits. */
DW_IMPORT(reply) int32_t dw_reply(const void *bytes, uint32_t length);

/* Says something beside the reply. Levels: 0 error, 1 warning, 2 notice (shown to the user), 3 debug. */
DW_IMPORT(log) int32_t dw_log(uint32_t level, const char *text, uint32_t length);

/* A setting by name, as text: those of the message, else those that the actor was spawned with. Well-known names:
 * "model", "system" (prompt), "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed". */
DW_IMPORT(setting) int32_t dw_setting(const char *name, uint32_t name_length, void *buffer, uint32_t capacity);

/* Milliseconds since 1970-01-01 UTC. */
DW_IMPORT(time_ms) int64_t dw_time_ms(void);

/* Fills a buffer from the actor's own random generator, whose state is part of its snapshot. */
DW_IMPORT(random) int32_t dw_random(void *buffer, uint32_t length);

/* --- models --------------------------------------------------------------------------------------------------------- */

#define DW_ADD_SPECIAL 1u   /* tokenize: add the special tokens that the model's file asks for */
#define DW_PARSE_SPECIAL 2u /* tokenize: special strings in the text become special tokens */

/* A model is named by the text that the setting "model" holds; length 0 names that one itself. */
typedef struct dw_model_info {
  uint32_t vocabulary;   /* number of logits */
  uint32_t context_max;  /* tokens that the model was trained for */
  int32_t bos, eos;      /* token ids, or -1 */
} dw_model_info;

DW_IMPORT(model_info) int32_t dw_model_info_get(const char *model, uint32_t model_length, dw_model_info *out);

/* Both lengths, and the capacity, count elements: bytes of text, or tokens. */
DW_IMPORT(tokenize) int32_t dw_tokenize(const char *model, uint32_t model_length, const char *text, uint32_t text_length,
                                        uint32_t flags, uint32_t *tokens, uint32_t capacity);
DW_IMPORT(detokenize) int32_t dw_detokenize(const char *model, uint32_t model_length, const uint32_t *tokens, uint32_t count,
                                            void *buffer, uint32_t capacity);
/* 1 if the token ends a turn or the text, else 0. */
DW_IMPORT(is_end) int32_t dw_is_end(const char *model, uint32_t model_length, uint32_t token);

/* Renders messages, a JSON array of {"role","content"}, by the model's chat template; with add_prompt 1 it opens the reply. */
DW_IMPORT(chat_template) int32_t dw_chat_template(const char *model, uint32_t model_length, const char *messages,
                                                  uint32_t messages_length, uint32_t add_prompt, void *buffer, uint32_t capacity);

/* --- sessions ------------------------------------------------------------------------------------------------------- */

/* How a session stores keys and values. */
typedef enum dw_kv { DW_KV_F16 = 0, DW_KV_F32 = 1, DW_KV_Q8 = 2 } dw_kv;

/* Opens a session on a model; context_max 0 asks for the model's own. Answers a handle. */
DW_IMPORT(session_open) int32_t dw_session_open(const char *model, uint32_t model_length, uint32_t kv, uint32_t context_max);
DW_IMPORT(session_close) int32_t dw_session_close(int32_t session);
/* A second session with the same tokens, KV (shared, not copied) and sampler. Answers its handle. */
DW_IMPORT(session_fork) int32_t dw_session_fork(int32_t session);
/* Forgets the tokens from `length` on. */
DW_IMPORT(session_truncate) int32_t dw_session_truncate(int32_t session, uint32_t length);
/* Tokens in the session; and the most that it can hold. */
DW_IMPORT(session_length) int32_t dw_session_length(int32_t session);
DW_IMPORT(session_context) int32_t dw_session_context(int32_t session);
/* The tokens from `first` on. */
DW_IMPORT(session_tokens) int32_t dw_session_tokens(int32_t session, uint32_t first, uint32_t *tokens, uint32_t capacity);

/* Appends tokens and evaluates them. Answers the session's new length. */
DW_IMPORT(prefill) int32_t dw_prefill(int32_t session, const uint32_t *tokens, uint32_t count);
/* Appends tokens without evaluating them yet: the next decode, next, generate or prefill does. */
DW_IMPORT(append) int32_t dw_append(int32_t session, const uint32_t *tokens, uint32_t count);

/* Evaluates what is appended and writes the logits of the next position, `count` = vocabulary floats, into linear memory. */
DW_IMPORT(decode) int32_t dw_decode(int32_t session, float *logits, uint32_t count);

typedef struct dw_sampler {
  float temperature; /* 0: greedy */
  uint32_t top_k;    /* 0: all */
  float top_p;       /* 1: all */
  float min_p;       /* 0: all */
  float repetition_penalty; /* 1: none */
  float presence_penalty;   /* 0: none */
  float frequency_penalty;  /* 0: none */
  uint32_t penalty_window;  /* last tokens that the penalties look at */
  uint32_t seed_low, seed_high;
} dw_sampler;

typedef struct dw_bias {
  uint32_t token;
  float bias; /* added to the logit; -infinity forbids the token */
} dw_bias;

/* Sets the session's sampler and its logit biases (at most 1024; count 0: none), and restarts its random generator from the seed. */
DW_IMPORT(set_sampler) int32_t dw_set_sampler(int32_t session, const dw_sampler *sampler, const dw_bias *biases, uint32_t bias_count);

/* Samples a token from logits in linear memory, by the session's sampler and history. The token is not appended. */
DW_IMPORT(sample) int32_t dw_sample(int32_t session, const float *logits, uint32_t count);

/* Evaluates what is appended, samples a token and appends it. Answers the token. */
DW_IMPORT(next) int32_t dw_next(int32_t session);

typedef enum dw_finish {
  DW_FINISH_END = 0,         /* the model ended its turn; the end token is the last one */
  DW_FINISH_LENGTH = 1,      /* max_tokens */
  DW_FINISH_STOP = 2,        /* a stop string; text from it on is not streamed */
  DW_FINISH_CONTEXT = 3,     /* the session's context is full */
  DW_FINISH_INTERRUPTED = 4, /* the user asked to end the reply */
  DW_FINISH_TOKEN_LIMIT = 5  /* the limit of tokens of this message */
} dw_finish;

typedef struct dw_generate_options {
  uint32_t max_tokens;
  uint32_t flags;           /* DW_STREAM, DW_IGNORE_END */
  uint32_t stops;           /* offset of the stop strings, each ended by a zero byte */
  uint32_t stops_length;    /* bytes of them all */
  uint32_t out_text;        /* out: offset of a buffer for the generated text, or 0 */
  uint32_t out_text_capacity;
  uint32_t out_text_length; /* out: bytes of the whole text */
  uint32_t out_finish;      /* out: a dw_finish */
} dw_generate_options;

#define DW_STREAM 1u     /* append the text to the reply as it comes */
#define DW_IGNORE_END 2u /* go on past end tokens */

/* Generates tokens until something of dw_finish happens. Answers how many; they are in the session. */
DW_IMPORT(generate) int32_t dw_generate(int32_t session, dw_generate_options *options);

/* --- compute -------------------------------------------------------------------------------------------------------- */

/* c (m, n) = a (m, k) times b (k, n), f32, row-major, all three in linear memory; c overlaps neither. */
DW_IMPORT(matmul) int32_t dw_matmul(const float *a, const float *b, float *c, uint32_t m, uint32_t k, uint32_t n);

#define DW_BINDING_ALIGN 256 /* bindings begin at multiples of this */

/* A range of linear memory that a kernel works on. */
typedef struct dw_binding {
  uint32_t offset; /* a multiple of DW_BINDING_ALIGN */
  uint32_t length; /* bytes, a multiple of 4 */
} dw_binding;

typedef struct dw_grid {
  uint32_t x, y, z;     /* workgroups, at most 65535 each */
  uint32_t loop_budget; /* iterations of loops that each invocation may run, at most and by default (0) 65536; then loops end */
} dw_grid;

/* Runs a kernel on the GPU, in linear memory: one text (ASCII but in comments) of WGSL with one entry point, `@compute fn main`. Its
 * buffers are `var<storage>` in group 0, at most 8, numbered from 0; binding i is buffer i. It reads and writes nothing else: an index
 * beyond a binding reaches some element of it, or none. A binding that the kernel may write overlaps no other. Workgroup memory starts
 * as zeros. Barriers stand where all invocations of a workgroup are sure to meet them: outside of loops, but those that run a constant
 * number of times. The fuel follows from the grid, the loop budget and the text, not from what the kernel does. */
DW_IMPORT(dispatch) int32_t dw_dispatch(const char *wgsl, uint32_t wgsl_length, const dw_binding *bindings, uint32_t binding_count,
                                        const dw_grid *grid);

#endif
