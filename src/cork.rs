//! Corked threads, which send several messages in a row, and wake the engine for all of them together.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// The number of commands after which a corked thread wakes shards, so that these do not wait for the whole of a long run.
const COMMANDS_MAX: u32 = 64;

/// An engine that corked threads wake.
pub(crate) trait Corked {
    /// Wakes the shards that sleep although there is something for them.
    fn wake_shards(&self);
}

/// The engine that a thread is corked for, by its address, or 0; and how many more commands wake no shard.
#[derive(Clone, Copy, Default)]
struct Cork {
    engine: usize,
    left: u32,
}

thread_local! {
    static CORK: Cell<Cork> = const { Cell::new(Cork { engine: 0, left: 0 }) };
    /// The engines of the corks that this thread is in, the innermost last.
    static ENGINES: RefCell<Vec<Arc<dyn Corked>>> = const { RefCell::new(Vec::new()) };
}

/// Ends a cork, also if its code panics.
struct Uncork {
    outer: Cork,
}

impl Drop for Uncork {
    fn drop(&mut self) {
        CORK.set(self.outer);
        let engine = ENGINES.try_with(|engines| engines.borrow_mut().pop());
        if let Ok(Some(engine)) = engine {
            engine.wake_shards();
        }
    }
}

/// Runs code whose commands wake each sleeping shard of an engine once, when it ends. A shard that is awake takes them at once.
pub(crate) fn cork<E: Corked + 'static, R>(engine: &Arc<E>, code: impl FnOnce() -> R) -> R {
    let address = Arc::as_ptr(engine).addr();
    let outer = CORK.get();
    // It ends with the outer one, and shares its number of commands.
    let is_inner = outer.engine == address;
    // A thread that ends has no such list any more.
    let is_listed = !is_inner
        && ENGINES
            .try_with(|engines| engines.borrow_mut().push(engine.clone()))
            .is_ok();
    if !is_listed {
        return code();
    }
    CORK.set(Cork {
        engine: address,
        left: COMMANDS_MAX,
    });
    let _uncork = Uncork { outer };
    code()
}

/// Whether the calling thread is corked for an engine, so that its next command may wait for others. Wakes the engine for
/// those before it if they are many.
#[inline]
pub(crate) fn is_corked<E: Corked>(engine: &E) -> bool {
    let mut cork = CORK.get();
    if cork.engine != std::ptr::from_ref(engine).addr() {
        return false;
    }
    if cork.left == 0 {
        engine.wake_shards();
        cork.left = COMMANDS_MAX;
    }
    cork.left -= 1;
    CORK.set(cork);
    true
}

/// Wakes the engines that the calling thread is corked for. To be called before the thread waits for anything: others may
/// wait for what it has sent.
pub(crate) fn before_waiting() {
    // A thread that ends has no such list any more, and is not corked.
    let engine = |index| {
        let engines = ENGINES.try_with(|engines| engines.borrow().get(index).cloned());
        engines.ok().flatten()
    };
    // Not borrowed meanwhile: waking may log an error, and the program's logger may send messages.
    for engine in (0..).map_while(engine) {
        engine.wake_shards();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[derive(Default)]
    struct Engine(AtomicUsize);

    impl Corked for Engine {
        fn wake_shards(&self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Engine {
        fn wakes(&self) -> usize {
            self.0.swap(0, Relaxed)
        }
    }

    #[test]
    fn cork_wakes_its_engine_after_64_commands_and_at_its_end() {
        let engine = Arc::new(Engine::default());
        cork(&engine, || {
            for (commands, wakes) in [(64, 0), (1, 1), (63, 0), (1, 1)] {
                assert!((0..commands).all(|_| is_corked(&*engine)));
                assert_eq!(engine.wakes(), wakes);
            }
        });
        assert_eq!(engine.wakes(), 1);
        assert!(!is_corked(&*engine));
    }

    #[test]
    fn inner_cork_shares_the_number_of_commands() {
        let engine = Arc::new(Engine::default());
        cork(&engine, || {
            for _ in 0..65 {
                cork(&engine, || assert!(is_corked(&*engine)));
            }
            assert_eq!(engine.wakes(), 1);
        });
        assert_eq!(engine.wakes(), 1);
    }

    #[test]
    fn wait_wakes_all_engines_that_the_thread_is_corked_for() {
        let engines = [(); 2].map(|()| Arc::new(Engine::default()));
        let wakes = || engines.each_ref().map(|engine| engine.wakes());
        cork(&engines[0], || {
            cork(&engines[1], || {
                before_waiting();
                assert_eq!(wakes(), [1, 1]);
                assert!(!is_corked(&*engines[0]) && is_corked(&*engines[1]));
            });
            assert_eq!(wakes(), [0, 1]);
            assert!(is_corked(&*engines[0]));
        });
        assert_eq!(wakes(), [1, 0]);
        before_waiting();
        assert_eq!(wakes(), [0, 0]);
    }

    #[test]
    fn panic_ends_its_cork() {
        let engine = Arc::new(Engine::default());
        let code = std::panic::AssertUnwindSafe(|| cork(&engine, || panic!("expected")));
        assert!(std::panic::catch_unwind(code).is_err());
        assert_eq!(engine.wakes(), 1);
        assert!(!is_corked(&*engine));
    }
}
