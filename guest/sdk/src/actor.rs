//! What makes a crate an actor: the exports, the allocator, the panic handler; and the macros that speak.
#![forbid(unsafe_code)]

use alloc::format;

use crate::{Error, Level, Result, log, message::utf8, receive};

/// The version of the contract that this SDK speaks.
pub const ABI: i32 = 1;

/// Makes a crate an actor, whose messages go to one function: `fn(message: &str) -> Result<()>`.
///
/// It exports `driftwood_abi` and `handle` and, on Wasm, sets the allocator and a panic handler that logs and traps. An error that
/// the function returns is logged, and its number (`Error::exit_code`) is what `handle` returns. An actor that links `std` brings
/// both itself and says `actor!(function, std)`.
///
/// An actor that wants to be told when the setting "model" was changed says `actor!(function, model_changed = other)`, with a function
/// `fn() -> Result<()>`: it exports `driftwood_model_changed`.
#[macro_export]
macro_rules! actor {
    ($handler:path, model_changed = $changed:path) => {
        $crate::actor!($handler);

        /// Hears that the setting "model" names another model.
        #[unsafe(no_mangle)]
        pub extern "C" fn driftwood_model_changed() -> i32 {
            $crate::macros::run_changed($changed)
        }
    };
    ($handler:path) => {
        $crate::actor!($handler, std);

        #[cfg(target_family = "wasm")]
        #[global_allocator]
        static HEAP: $crate::macros::Heap = $crate::macros::Heap::new();

        #[cfg(target_family = "wasm")]
        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo) -> ! {
            $crate::macros::panicked(info)
        }
    };
    ($handler:path, std) => {
        /// The version of the contract that this actor speaks.
        #[unsafe(no_mangle)]
        pub extern "C" fn driftwood_abi() -> i32 {
            $crate::macros::ABI
        }

        /// Handles one message.
        #[unsafe(no_mangle)]
        pub extern "C" fn handle() -> i32 {
            $crate::macros::run($handler)
        }
    };
}

/// Appends formatted text to the reply: `reply!("{} of {}", 3, 5)?`.
#[macro_export]
macro_rules! reply {
    ($($argument:tt)*) => { $crate::reply(&$crate::macros::format!($($argument)*)) };
}

/// Logs formatted text: `log!(Level::Notice, "{} left", 3)`.
#[macro_export]
macro_rules! log {
    ($level:expr, $($argument:tt)*) => { $crate::log($level, &$crate::macros::format!($($argument)*)) };
}

/// What `handle` does.
pub fn run(handler: fn(&str) -> Result<()>) -> i32 {
    let handled = receive().and_then(|bytes| utf8("receive", bytes)).and_then(|message| handler(&message));
    handled.map_or_else(|error| failed(&error), |()| 0)
}

/// What `driftwood_model_changed` does.
pub fn run_changed(handler: fn() -> Result<()>) -> i32 {
    handler().map_or_else(|error| failed(&error), |()| 0)
}

fn failed(error: &Error) -> i32 {
    log(Level::Error, &format!("{error}"));
    error.exit_code()
}

/// Says why, on the stack since memory may be what ran out, and traps.
#[cfg(target_family = "wasm")]
pub fn panicked(info: &core::panic::PanicInfo) -> ! {
    let mut line = Line { bytes: [0; 256], length: 0 };
    // A line never fails: it drops what does not fit.
    let _ = core::fmt::write(&mut line, format_args!("{info}"));
    log(Level::Error, core::str::from_utf8(&line.bytes[..line.length]).unwrap_or("the actor panicked"));
    core::arch::wasm32::unreachable()
}

/// As much of a text as fits, cut between characters.
#[cfg_attr(not(target_family = "wasm"), allow(dead_code))] // only the panic handler writes one
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for character in text.chars() {
            let mut encoded = [0; 4];
            let encoded = character.encode_utf8(&mut encoded).as_bytes();
            if let Some(room) = self.bytes.get_mut(self.length..self.length + encoded.len()) {
                room.copy_from_slice(encoded);
                self.length += encoded.len();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn a_line_is_cut_between_characters() {
        let mut line = Line { bytes: [0; 256], length: 0 };
        write!(line, "{}ß", "x".repeat(255)).unwrap();
        assert_eq!(line.length, 255);
        assert!(core::str::from_utf8(&line.bytes[..line.length]).is_ok());
    }
}
