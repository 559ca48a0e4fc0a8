//! From logits to yes or no.

use alloc::vec::Vec;

use driftwood_guest::Token;

/// A token that may be chosen, and what it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub token: Token,
    pub yes: bool,
}

/// How far the model leans.
pub struct Verdict {
    /// What each choice says, and its logit less the largest one's.
    scores: Vec<(bool, f64)>,
}

impl Verdict {
    /// Reads the choices' logits; what is no number is as unlikely as can be.
    pub fn new(choices: &[Choice], logits: &[f32]) -> Verdict {
        let logit = |token: Token| logits.get(token as usize).map_or(f64::MIN, |logit| f64::from(*logit).max(f64::MIN));
        let largest = choices.iter().map(|choice| logit(choice.token)).fold(f64::MIN, f64::max);
        Verdict { scores: choices.iter().map(|choice| (choice.yes, logit(choice.token) - largest)).collect() }
    }

    /// The probability of yes, given that the answer is yes or no.
    pub fn p_yes(&self) -> f64 {
        self.p_yes_at(1.0)
    }

    /// The answer: at temperature 0 that of the likeliest token, else by `chance`, uniform in 0..1.
    pub fn is_yes(&self, temperature: f32, chance: f64) -> bool {
        if temperature > 0.0 {
            return chance < self.p_yes_at(f64::from(temperature));
        }
        self.scores.iter().any(|(yes, score)| *yes && *score == 0.0)
    }

    /// Softmax over the choices alone.
    fn p_yes_at(&self, temperature: f64) -> f64 {
        let weight = |score: f64| libm::exp(score / temperature);
        let all: f64 = self.scores.iter().map(|(_, score)| weight(*score)).sum();
        let yes: f64 = self.scores.iter().filter(|(yes, _)| *yes).map(|(_, score)| weight(*score)).sum();
        yes / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICES: [Choice; 3] = [Choice { token: 0, yes: true }, Choice { token: 2, yes: false }, Choice { token: 3, yes: true }];

    #[test]
    fn probabilities_are_those_of_the_choices_alone() {
        let verdict = Verdict::new(&CHOICES, &[0.0, 99.0, 0.0, 0.0]);
        assert!((verdict.p_yes() - 2.0 / 3.0).abs() < 1e-12);
        let verdict = Verdict::new(&CHOICES, &[1000.0, 0.0, 998.0, -1000.0]);
        assert!((verdict.p_yes() - 1.0 / (1.0 + (-2.0f64).exp())).abs() < 1e-12);
    }

    #[test]
    fn the_answer_is_the_likeliest_token_or_drawn() {
        // No is the likeliest token, though yes has more in sum.
        let verdict = Verdict::new(&CHOICES, &[1.0, 99.0, 1.5, 1.0]);
        assert!(verdict.p_yes() > 0.5);
        assert!(!verdict.is_yes(0.0, 0.0));
        assert!(verdict.is_yes(1.0, 0.0) && !verdict.is_yes(1.0, 0.999_999));
    }

    #[test]
    fn odd_logits_do_no_harm() {
        let verdict = Verdict::new(&CHOICES, &[f32::NAN, 0.0, f32::NEG_INFINITY, 1.0]);
        assert_eq!(verdict.p_yes(), 1.0);
        assert!(Verdict::new(&CHOICES, &[]).p_yes().is_finite());
    }
}
