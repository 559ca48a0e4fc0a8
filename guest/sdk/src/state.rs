//! What an actor keeps from message to message: a cell in linear memory, and so in every snapshot.

/// A value in a `static` that lives as long as the actor does; made by `Default` when it is first used.
///
/// ```
/// use driftwood_guest::State;
/// static TOLD: State<u32> = State::new();
/// assert_eq!(TOLD.with(|told| { *told += 1; *told }), 1);
/// ```
#[derive(Debug)]
pub struct State<T> {
    cell: Cell<Option<T>>,
}

#[cfg(not(target_family = "wasm"))]
type Cell<T> = std::sync::Mutex<T>;
#[cfg(target_family = "wasm")]
type Cell<T> = core::cell::RefCell<T>;

// SAFETY: a module has one thread, since the contract knows no shared memory, and the cell refuses a second borrow.
#[cfg(target_family = "wasm")]
unsafe impl<T> Sync for State<T> {}

impl<T: Default> State<T> {
    /// A cell for a `static`.
    #[allow(clippy::new_without_default)] // a default that is not const is of no use in a static
    pub const fn new() -> Self {
        State { cell: Cell::new(None) }
    }

    /// Works on the value.
    ///
    /// # Panics
    /// If it is used again inside `work`.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(target_family = "wasm")]
        let mut value = self.cell.borrow_mut();
        #[cfg(not(target_family = "wasm"))]
        let mut value = self.cell.try_lock().expect("a state is used by one at a time");
        work(value.get_or_insert_with(T::default))
    }
}
