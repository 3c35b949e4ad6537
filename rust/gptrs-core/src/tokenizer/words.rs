//! The words that a tokenizer has seen, shared by all who encode with it: the present table, which a
//! larger or an empty one replaces when it is full.

use std::sync::{Arc, Mutex, MutexGuard};

use super::cache::{Key, Room, WordCache};

/// A tokenizer's words.
#[derive(Debug, Default)]
pub struct SharedWords(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    present: Arc<WordCache>,
    /// The one before, as large as any, to be used again when nobody reads it.
    former: Option<Arc<WordCache>>,
}

/// The words as one thread has them: it may keep to a table that was replaced.
#[derive(Debug)]
pub struct Words<'t> {
    shared: &'t SharedWords,
    known: Arc<WordCache>,
    /// What this thread has put there and not counted yet.
    uncounted: usize,
    /// Where it puts what is long.
    room: Room,
}

impl<'t> Words<'t> {
    pub fn new(shared: &'t SharedWords) -> Self {
        let known = shared.lock().map(|words| Arc::clone(&words.present)).unwrap_or_default();
        Self { shared, known, uncounted: 0, room: Room::default() }
    }

    #[inline(always)]
    pub fn known(&self) -> &WordCache {
        &self.known
    }

    /// Keeps the ids of a word.
    pub fn put(&mut self, key: Key, word: &[u8], ids: &[u16]) {
        self.uncounted += usize::from(self.known.put(&mut self.room, key, word, ids));
    }

    /// Makes room at once for the words of a text of this size.
    pub fn expect(&mut self, text_bytes: usize) {
        if self.known.is_small_for(text_bytes) {
            self.renew(text_bytes);
        }
    }

    /// The table, with room for more words. Keys of another are no good for it.
    #[inline(always)]
    pub fn with_room(&mut self) -> &WordCache {
        if self.uncounted >= COUNTED_TOGETHER {
            self.known.add_words(std::mem::take(&mut self.uncounted));
        }
        if self.known.is_full() {
            self.renew(0);
        }
        &self.known
    }

    #[cold]
    fn renew(&mut self, text_bytes: usize) {
        self.leave();
        // Somebody else may be at it.
        let Some(mut shared) = self.shared.lock() else { return };
        if shared.present.is_full() || shared.present.is_small_for(text_bytes) {
            shared.renew(text_bytes);
        }
        self.known = Arc::clone(&shared.present);
    }

    /// Counts what was put into the table, and takes no more room there.
    fn leave(&mut self) {
        self.known.add_words(std::mem::take(&mut self.uncounted));
        self.known.give_back(std::mem::take(&mut self.room));
    }
}

impl Tables {
    /// A larger table; an empty one where there is no larger.
    fn renew(&mut self, text_bytes: usize) {
        if let Some(larger) = self.present.larger(text_bytes) {
            self.present = Arc::new(larger);
            return;
        }
        let empty = self.former.take().and_then(|mut former| {
            Arc::get_mut(&mut former)?.clear();
            Some(former)
        });
        let empty = empty.unwrap_or_else(|| Arc::new(self.present.empty()));
        self.former = Some(std::mem::replace(&mut self.present, empty));
    }
}

impl Drop for Words<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl SharedWords {
    /// The present table. Does not wait forever: a fork may have left the lock to nobody.
    fn lock(&self) -> Option<MutexGuard<'_, Tables>> {
        (0..MOST_TRIES).find_map(|_| {
            std::hint::spin_loop();
            self.0.try_lock().ok()
        })
    }
}

const MOST_TRIES: usize = 30;

/// How many words a thread puts into a table before it counts them: all threads write to that number.
const COUNTED_TOGETHER: usize = 64;
