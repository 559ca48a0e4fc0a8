//! GGUF files, good and bad: each bad one with the error that it must give.

mod common;

use common::{GgufBuilder, parse, tiny_bpe, tiny_spm};
use driftwood_engine::Error;
use driftwood_engine::template::{ChatTemplate, Message, TemplateOrigin};
use driftwood_engine::tokenizer::Tokenizer;
use driftwood_region::DType;

fn small() -> GgufBuilder {
    GgufBuilder::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .raw("llama.context_length", 10, &4096u64.to_le_bytes())
        .f32("llama.rope.freq_base", 1e4)
        .bool("tokenizer.ggml.add_bos_token", true)
        .strings("general.languages", &["en", "", "日本"])
        .i32s("some.numbers", &[-1, 0, 7])
        .f32s("some.floats", &[0.5, -2.0])
        .tensor("a", &[32, 3], 8, &[1; 102])
        .tensor("b", &[5], 0, &[2; 20])
        .tensor("c", &[2, 3, 4], 1, &[3; 48])
}

#[test]
fn a_good_file_reads_back() {
    let file = small().parse().unwrap();
    assert_eq!((file.version(), file.u32("llama.block_count").unwrap(), file.u32("llama.context_length").unwrap()), (3, 2, 4096));
    assert_eq!((file.string("general.architecture").unwrap(), file.f32("llama.rope.freq_base").unwrap()), ("llama", 1e4));
    assert_eq!(file.optional_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!((file.optional_u32("no").unwrap(), file.optional_string("no").unwrap()), (None, None));
    assert_eq!(file.strings("general.languages").unwrap().collect::<Vec<_>>(), ["en", "", "日本"]);
    assert_eq!(file.integers("some.numbers").unwrap().collect::<Vec<_>>(), [-1, 0, 7]);
    assert_eq!(file.floats("some.floats").unwrap().collect::<Vec<_>>(), [0.5, -2.0]);
    let (a, c) = (file.tensor("a").unwrap(), file.tensor("c").unwrap());
    assert_eq!((a.dtype(), a.shape().extents(), a.bytes()), (DType::Q8_0, &[3, 32][..], &[1; 102][..]));
    assert_eq!((c.dtype(), c.shape().extents(), c.bytes()), (DType::F16, &[4, 3, 2][..], &[3; 48][..]));
    assert_eq!(file.tensors().count(), 3);
}

#[test]
fn getters_name_the_key_and_what_it_is() {
    let file = small().parse().unwrap();
    for (error, expected) in [
        (file.u32("no.such").unwrap_err(), "lacks the key `no.such`"),
        (file.u32("llama.rope.freq_base").unwrap_err(), "`llama.rope.freq_base` should be an integer of 32 bits, but is the f32 10000"),
        (file.u32("some.numbers").unwrap_err(), "but is an array of 3 i32"),
        (file.string("llama.block_count").unwrap_err(), "should be a string, but is the integer 2"),
        (file.strings("some.floats").map(drop).unwrap_err(), "should be an array of strings"),
        (file.tensor("d").unwrap_err(), "lacks the tensor `d`"),
    ] {
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for builder in [small(), tiny_bpe(), tiny_spm()] {
        let bytes = builder.build();
        let table_end = bytes.len() - 32;
        for len in 0..bytes.len() {
            let result = parse(&bytes[..len]);
            assert!(result.is_err() || len >= table_end, "{len} of {} bytes", bytes.len());
        }
    }
}

/// Every byte of a small file, set to the values that break parsers: an error or a file, never a panic.
#[test]
fn every_altered_byte_is_survived() {
    for bytes in [small().build(), tiny_spm().str("tokenizer.chat_template", "{{ messages[0].content }}").build()] {
        for at in (0..bytes.len()).step_by(if bytes.len() > 2000 { 7 } else { 1 }) {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut altered = bytes.clone();
                altered[at] = value;
                common::exercise::gguf(&altered);
            }
        }
    }
}

fn lying(tensors: Option<u64>, keys: Option<u64>) -> GgufBuilder {
    GgufBuilder { tensor_count: tensors, key_count: keys, ..small() }
}

fn nested(depth: usize) -> GgufBuilder {
    let (array, one) = (9u32.to_le_bytes(), 1u64.to_le_bytes());
    let heads: Vec<u8> = (1..depth).flat_map(|_| [&array[..], &one].concat()).collect();
    GgufBuilder::default().raw("deep", 9, &[&heads[..], &0u32.to_le_bytes(), &one, &[5]].concat())
}

#[test]
fn bad_files_get_clear_errors() {
    let f = GgufBuilder::default;
    let odd = |a: u32| f().u32("general.alignment", a).tensor("a", &[1], 0, &[0; 4]);
    let cases: Vec<(GgufBuilder, &str)> = vec![
        (GgufBuilder { magic: Some(*b"PK\x03\x04"), ..f() }, "not a GGUF file of version 2 or 3: it begins with PK\\x03\\x04"),
        (GgufBuilder { version: Some(1), ..f() }, "its version is 1"),
        (GgufBuilder { version: Some(4), ..f() }, "its version is 4"),
        (GgufBuilder { version: Some(3 << 24), ..f() }, "it is big-endian"),
        (lying(Some(u64::MAX), None), "has 18446744073709551615 tensors; at most 65536 are accepted"),
        (lying(None, Some(1 << 40)), "1099511627776 keys; at most 4096"),
        (lying(Some(60_000), None), "truncated: the tensor table"),
        (lying(None, Some(4000)), ""),
        (f().str("k", "v").str("k", "w"), "has the key `k` twice"),
        (f().raw("k", 13, &[]), "the key `k` has the unknown type 13"),
        (f().raw("k\u{1b}[2J", 99, &[]), "the key `k\\u{1b}[2J` has the unknown type 99"),
        (f().raw("k", 8, &u64::MAX.to_le_bytes()), "truncated: a string"),
        (f().raw("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "is not UTF-8"),
        (f().str(&"k".repeat(2000), "v"), "2000 bytes in a key; at most 1024"),
        (f().array("k", 4, u64::MAX, &[]), "array elements; at most"),
        (f().array("k", 4, 1 << 20, &[]), "truncated: an array"),
        (f().array("k", 8, 1 << 20, &[]), "truncated: an array"),
        (f().array("k", 77, 1, &[0; 8]), "unknown type 77"),
        (nested(3), "nests arrays too deeply"),
        (odd(0), "`general.alignment` should be a power of two up to 1 MiB, but is the integer 0"),
        (odd(24), "`general.alignment`"),
        (odd(1 << 31), "`general.alignment`"),
        (f().str("general.alignment", "32"), "but is a string of 2 bytes"),
        (
            f().tensor("x", &[256], 17, &[0; 74]),
            "tensor `x` has type IQ2_XS, which is not supported; use a file with one of F32, F16, Q4_0",
        ),
        (f().tensor("x", &[4], 1000, &[0; 16]), "tensor `x` has type number 1000"),
        (f().tensor("x", &[4], 4, &[0; 16]), "has type number 4"),
        (f().tensor("x", &[], 0, &[0; 4]), "tensor `x` has 0 extents; 1 to 4 are possible"),
        (f().tensor("x", &[1; 5], 0, &[0; 4]), "has 5 extents"),
        (f().tensor("x", &[4, 0], 0, &[0; 4]), "has an extent of 0"),
        (f().tensor("x", &[1 << 33, 1 << 33], 0, &[0; 4]), "more elements than the address space"),
        (f().tensor("x", &[1 << 31, 1 << 31], 0, &[0; 4]), "cannot be stored as F32"),
        (f().tensor("x", &[33], 2, &[0; 36]), "tensor `x` of shape [33] cannot be stored as Q4_0"),
        (f().tensor("x", &[8], 0, &[0; 31]), "tensor `x` needs 32 bytes at byte"),
        (f().info("x", &[8], 0, u64::MAX), "tensor `x` needs 32 bytes"),
        (f().info("x", &[8], 0, 1 << 40), "tensor `x` needs 32 bytes"),
        (f().tensor("x", &[1], 0, &[0; 4]).tensor("x", &[1], 0, &[0; 4]), "has the tensor `x` twice"),
        (f().tensor("x", &[8], 0, &[0; 32]).info("y", &[1], 0, 28), "tensors `x` and `y` overlap"),
        (f().tensor(&"x".repeat(300), &[1], 0, &[0; 4]), "300 bytes in a tensor's name; at most 256"),
    ];
    for (builder, expected) in cases {
        let error = builder.parse().map(drop).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
    assert!(nested(2).parse().is_ok());
    assert!(matches!(parse(&[]), Err(Error::Region(_))));
}

#[test]
fn bad_tokenizers_get_clear_errors() {
    let f = || GgufBuilder::default().str("tokenizer.ggml.model", "llama");
    let gpt = || GgufBuilder::default().str("tokenizer.ggml.model", "gpt2");
    let long = "x".repeat(2000);
    let special = "y".repeat(300);
    let cases: Vec<(GgufBuilder, &str)> = vec![
        (GgufBuilder::default(), "lacks the key `tokenizer.ggml.model`"),
        (
            GgufBuilder::default().str("tokenizer.ggml.model", "bert").strings("tokenizer.ggml.tokens", &["a"]),
            "tokenizer model `bert` is not supported",
        ),
        (f(), "lacks the key `tokenizer.ggml.tokens`"),
        (f().strings("tokenizer.ggml.tokens", &[]), "it has 0 pieces"),
        (f().strings("tokenizer.ggml.tokens", &[&long]), "piece 0 has 2000 bytes; at most 1024"),
        (f().strings("tokenizer.ggml.tokens", &["a"]), "lacks the key `tokenizer.ggml.scores`"),
        (f().strings("tokenizer.ggml.tokens", &["a"]).f32s("tokenizer.ggml.scores", &[0.0, 1.0]), "2 scores for 1 pieces"),
        (f().strings("tokenizer.ggml.tokens", &["a"]).f32s("tokenizer.ggml.scores", &[0.0]), "neither a piece <0x00> nor an unknown piece"),
        (f().strings("tokenizer.ggml.tokens", &["a"]).i32s("tokenizer.ggml.token_type", &[1, 1]), "2 entries for 1 pieces"),
        (f().strings("tokenizer.ggml.tokens", &["a"]).i32s("tokenizer.ggml.token_type", &[9]), "unknown type 9"),
        (
            f().strings("tokenizer.ggml.tokens", &["a"]).u32("tokenizer.ggml.bos_token_id", 1),
            "`tokenizer.ggml.bos_token_id` is 1, but there are 1 pieces",
        ),
        (
            gpt().strings("tokenizer.ggml.tokens", &["a"]).str("tokenizer.ggml.pre", "tekkenish"),
            "pre-tokenizer `tekkenish` is not supported; supported are gpt-2, default, smollm",
        ),
        (gpt().strings("tokenizer.ggml.tokens", &["a"]), "lacks the key `tokenizer.ggml.merges`"),
        (gpt().strings("tokenizer.ggml.tokens", &["a"]).strings("tokenizer.ggml.merges", &["a b"]), "merge 0, `a b`, does not join"),
        (gpt().strings("tokenizer.ggml.tokens", &["a"]).strings("tokenizer.ggml.merges", &["aa"]), "merge 0, `aa`, does not join"),
        (
            gpt()
                .strings("tokenizer.ggml.tokens", &[&special])
                .i32s("tokenizer.ggml.token_type", &[3])
                .strings("tokenizer.ggml.merges", &[]),
            "special piece 0 has 300 bytes; at most 256",
        ),
    ];
    for (builder, expected) in cases {
        let error = Tokenizer::from_gguf(&builder.parse().unwrap()).map(drop).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
}

fn render(template: Option<&str>, builder: GgufBuilder, messages: &[(&str, &str)]) -> Result<(String, TemplateOrigin), Error> {
    let builder = template.into_iter().fold(builder, |b, source| b.str("tokenizer.chat_template", source));
    let file = builder.parse().unwrap();
    let template = ChatTemplate::from_gguf(&file, &Tokenizer::from_gguf(&file).unwrap())?;
    let messages: Vec<_> = messages.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    Ok((template.render(&messages, true)?, template.origin()))
}

#[test]
fn families_have_templates_of_their_own() {
    let turns = [("system", "S"), ("user", " U "), ("assistant", "A"), ("user", "V")];
    let gemma = "<start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(render(None, tiny_spm(), &turns).unwrap(), (gemma.to_owned(), TemplateOrigin::Family("gemma")));
    let chatml = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n U <|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(None, tiny_bpe(), &turns[..2]).unwrap(), (chatml.to_owned(), TemplateOrigin::Family("chatml")));
    let bare = GgufBuilder::default().str("general.architecture", "llama").str("tokenizer.ggml.model", "gpt2");
    let bare = bare.strings("tokenizer.ggml.merges", &[]);
    let llama3 =
        bare.clone().strings("tokenizer.ggml.tokens", &["<|begin_of_text|>", "<|start_header_id|>"]).u32("tokenizer.ggml.bos_token_id", 0);
    let expected =
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(render(None, llama3, &turns[1..2]).unwrap(), (expected.to_owned(), TemplateOrigin::Family("llama3")));
    let error = render(None, bare.strings("tokenizer.ggml.tokens", &["a"]), &[]).unwrap_err();
    assert!(error.to_string().contains("architecture `llama`"), "{error}");
}

#[test]
fn templates_render_as_transformers_does() {
    for (source, expected) in [
        (
            "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m['content'].strip().title() }}\n  {% endif %}\n{% endfor %}\n",
            "Hi There\n",
        ),
        ("{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ add_generation_prompt }}", "<|im_start|><|im_end|>TrueTrue"),
        ("{{ messages | tojson }}", r#"[{"role": "user", "content": "hi there"}]"#),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages * 5 %}{% if loop.index > 3 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{{ messages[0].content.split(' ')[-1] }} {{ messages[0].get('x') is none }} {{ messages[0]['y'] }}", "there True "),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
    ] {
        assert_eq!(render(Some(source), tiny_bpe(), &[("user", "hi there")]).unwrap().0, expected, "{source}");
    }
    let dated = render(Some("{{ strftime_now('%d %b %Y') }}"), tiny_bpe(), &[]).unwrap().0;
    assert_eq!(dated.split(' ').count(), 3, "{dated}");
}

#[test]
fn hostile_templates_end_in_errors() {
    let many = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}";
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    let large = "{% set s = 'x' * 90000000 %}{{ s }}{{ s }}";
    let nest = "{% set ns = namespace(x=1) %}{% for a in range(60000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    let print = "{% set ns = namespace(x=1) %}{% for a in range(60000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}{{ no.thing }}";
    let equal = "{% set n = namespace(x=1, y=1) %}{% for a in range(30000) %}{% set n.x = [n.x] %}{% set n.y = {'a': n.y} %}{% endfor %}\
        {{ n.x == [n.x] }}{{ n.y < n.y }}{{ n.y | string | length }}{{ [n.x, n.x] | unique }}{{ [n.y, n.y] | sort }}{{ {n.x: 1} }}{{ no.thing }}";
    for (source, expected) in [
        ("{% if %}", "the chat template failed: "),
        ("{{ nonsense.x }}", "failed: "),
        ("{{ raise_exception('roles must\u{7} alternate') }}", "roles must\\u{7} alternate"),
        ("{% include '/etc/passwd' %}", "failed: "),
        (many, "more than 500000 steps"),
        (deep, "recursion"),
        (large, "renders more than"),
        (nest, "too large to be printed"),
        (print, "failed: "),
        (equal, "failed: "),
        ("{{ 'x' | indent(1000000000000000000) }}{{ messages.a.b }}", "failed: "),
        (&"x".repeat(300_000), "it has 300000 bytes; at most 262144"),
        (&"{{ (".repeat(20_000), "failed: "),
        (&"{% if 1 %}".repeat(20_000), "failed: "),
    ] {
        let error = render(Some(source), tiny_bpe(), &[("user", "hi")]).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
    }
}
