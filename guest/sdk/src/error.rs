//! What can go wrong in an actor: the host refused a call, or the actor itself gave up.

use alloc::string::String;
use core::fmt;

/// The result of everything that may fail here.
pub type Result<T> = core::result::Result<T, Error>;

/// Why a message could not be handled.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// The host refused a call.
    Host {
        /// The function of `driftwood.h`, without its prefix.
        call: &'static str,
        /// The reason.
        code: Code,
    },
    /// The actor's own reason, in words for the user.
    Failed(String),
}

/// The reasons a host can give: `dw_error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A range leaves the linear memory.
    OutOfBounds,
    /// A value that the function does not take.
    BadArgument,
    /// The session is not open.
    NoSuchSession,
    /// This host has no model of that name, or this actor may not use it.
    NoSuchModel,
    /// A limit is reached: the actor's of sessions or KV memory, or the host's of kernels.
    Limit,
    /// The session's context has no room for what was asked.
    ContextFull,
    /// This message's limit of tokens is reached.
    TokenLimit,
    /// Text that is not UTF-8, or JSON of another form.
    BadText,
    /// No such setting.
    NotFound,
    /// The user asked to end this reply.
    Interrupted,
    /// The host failed to compute.
    ModelError,
    /// The host has no GPU, or none that can share this memory.
    NoGpu,
    /// The text is no WGSL, or a kernel that the host does not let through.
    BadKernel,
    /// A binding does not begin at a multiple of 256 bytes.
    Unaligned,
    /// A reason of a later contract.
    Other(i32),
}

impl Error {
    /// What `handle` returns to the host: 1 for the actor's own errors, one more than the positive error number for the host's.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Failed(_) => 1,
            Error::Host { code, .. } => 1 - code.number(),
        }
    }

    /// Whether the host refused for that reason.
    pub fn is(&self, reason: Code) -> bool {
        matches!(self, Error::Host { code, .. } if *code == reason)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Failed(why) => out.write_str(why),
            Error::Host { call, code: Code::Other(number) } => write!(out, "{call}: the host answered {number}"),
            Error::Host { call, code } => write!(out, "{call}: {}", code.words()),
        }
    }
}

impl core::error::Error for Error {}

impl Code {
    /// The numbers of `dw_error`, in order from -1 down.
    const ALL: [Code; 14] = [
        Code::OutOfBounds,
        Code::BadArgument,
        Code::NoSuchSession,
        Code::NoSuchModel,
        Code::Limit,
        Code::ContextFull,
        Code::TokenLimit,
        Code::BadText,
        Code::NotFound,
        Code::Interrupted,
        Code::ModelError,
        Code::NoGpu,
        Code::BadKernel,
        Code::Unaligned,
    ];

    /// Reads a negative answer of the host.
    pub fn from_number(number: i32) -> Code {
        let index = number.checked_neg().and_then(|positive| usize::try_from(positive - 1).ok());
        index.and_then(|index| Code::ALL.get(index).copied()).unwrap_or(Code::Other(number))
    }

    /// The negative number that stands for it in `dw_error`.
    pub fn number(self) -> i32 {
        if let Code::Other(number) = self {
            return number;
        }
        let index = Code::ALL.iter().position(|code| *code == self).unwrap_or_default();
        -(index as i32) - 1
    }

    fn words(self) -> &'static str {
        match self {
            Code::OutOfBounds => "a range leaves the linear memory",
            Code::BadArgument => "a value that the function does not take",
            Code::NoSuchSession => "the session is not open",
            Code::NoSuchModel => "this actor has no model of that name",
            Code::Limit => "a limit of the actor or of the host is reached",
            Code::ContextFull => "the session's context has no room for what was asked",
            Code::TokenLimit => "this message's limit of tokens is reached",
            Code::BadText => "text that is not utf-8, or json of another form",
            Code::NotFound => "no such setting",
            Code::Interrupted => "the user ended the reply",
            Code::ModelError => "the host failed to compute; its log says why",
            Code::NoGpu => "this host has no gpu that can share the actor's memory",
            Code::BadKernel => "the host does not let the kernel through; its log says why",
            Code::Unaligned => "a binding does not begin at a multiple of 256 bytes",
            Code::Other(_) => "a reason that this sdk does not know",
        }
    }
}

/// Reads a host's answer: 0 or more is a count or handle, less is an error.
pub(crate) fn answer(call: &'static str, answer: i32) -> Result<u32> {
    u32::try_from(answer).map_err(|_| Error::Host { call, code: Code::from_number(answer) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_numbers_agree() {
        for number in [-1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11, -14, -15, -400, i32::MIN] {
            assert_eq!(Code::from_number(number).number(), number);
        }
        assert_eq!(Code::from_number(-6), Code::ContextFull);
        assert_eq!(Code::from_number(-14), Code::Unaligned);
        assert_eq!(Code::from_number(-15), Code::Other(-15));
    }

    #[test]
    fn errors_say_what_was_called() {
        let error = answer("prefill", -6).unwrap_err();
        assert_eq!(error.to_string(), "prefill: the session's context has no room for what was asked");
        assert_eq!(error.exit_code(), 7);
        assert!(error.is(Code::ContextFull));
        assert_eq!(answer("prefill", 12), Ok(12));
        assert_eq!(Error::Failed("no".into()).exit_code(), 1);
    }
}
