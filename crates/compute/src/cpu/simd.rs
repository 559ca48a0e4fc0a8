//! Which instructions the kernels may use, found at run time.

use crate::Error;
use std::fmt;
use std::str::FromStr;

/// A SIMD path. All of them give the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Simd {
    /// Plain Rust, on every machine.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and VNNI.
    Avx512,
    /// NEON, with the dot-product instructions where the machine has them.
    Neon,
}

impl Simd {
    /// Every path, slowest first.
    pub const ALL: [Simd; 4] = [Simd::Portable, Simd::Neon, Simd::Avx2, Simd::Avx512];

    /// The fastest path of this machine.
    pub fn detect() -> Simd {
        Self::ALL.into_iter().rfind(|s| s.is_available()).unwrap_or(Simd::Portable)
    }

    /// The paths that this machine can run, slowest first.
    pub fn available() -> Vec<Simd> {
        Self::ALL.into_iter().filter(|s| s.is_available()).collect()
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            Simd::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => {
                Simd::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Simd::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            _ => false,
        }
    }

    /// The name that users know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Simd::Portable => "portable",
            Simd::Avx2 => "avx2",
            Simd::Avx512 => "avx512",
            Simd::Neon => "neon",
        }
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Simd {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown = || Error::UnknownName { what: "SIMD path", given: name.to_owned(), known: "portable, avx2, avx512, neon" };
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_detection() {
        assert!(Simd::ALL.into_iter().all(|s| s.to_string().parse() == Ok(s)));
        assert!("sse".parse::<Simd>().is_err());
        assert_eq!(Simd::available()[0], Simd::Portable);
        assert_eq!(Simd::available().last(), Some(&Simd::detect()));
    }
}
