//! What sessions on other models stood for when they were closed: their text and, since text may have other tokens when it is tokenised
//! again, the tokens themselves.

use alloc::{string::String, vec::Vec};

use driftwood_guest::Token;

use crate::feed::Fed;

/// As many as the host keeps keys and values for.
const FORMERS_MAX: usize = 8;

/// The oldest first.
#[derive(Default)]
pub struct Formers {
    left: Vec<Former>,
}

struct Former {
    model: String,
    fed: Fed,
    tokens: Vec<Token>,
}

impl Formers {
    /// Remembers a session that is about to be closed, if it is known what it stands for.
    pub fn leave(&mut self, model: String, fed: Option<Fed>, tokens: Vec<Token>) {
        self.left.retain(|former| former.model != model);
        let Some(fed) = fed else { return };
        if self.left.len() == FORMERS_MAX {
            self.left.remove(0);
        }
        self.left.push(Former { model, fed, tokens });
    }

    /// What the last session on a model stood for; it is forgotten here.
    pub fn come_back(&mut self, model: &str) -> Option<(Fed, Vec<Token>)> {
        let at = self.left.iter().position(|former| former.model == model)?;
        let former = self.left.remove(at);
        Some((former.fed, former.tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    fn fed(text: &str) -> Option<Fed> {
        Some(Fed { text: text.into(), end: None })
    }

    #[test]
    fn a_model_is_remembered_once_and_until_it_is_back() {
        let mut formers = Formers::default();
        formers.leave("a".into(), fed("old"), vec![1]);
        formers.leave("a".into(), fed("new"), vec![1, 2]);
        let (fed_again, tokens) = formers.come_back("a").unwrap();
        assert_eq!((fed_again.text.as_str(), tokens), ("new", vec![1, 2]));
        assert!(formers.come_back("a").is_none());
        formers.leave("a".into(), None, vec![1]);
        assert!(formers.come_back("a").is_none(), "nobody knows what it stands for");
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut formers = Formers::default();
        for model in 0..=FORMERS_MAX {
            formers.leave(format!("{model}"), fed("x"), vec![]);
        }
        assert!(formers.come_back("0").is_none() && formers.come_back("1").is_some());
    }
}
