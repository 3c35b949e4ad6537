//! Who does what next: which input a free thread reads from, which block is written next, and how
//! much is in memory until then.

use std::collections::BTreeMap;
use std::ops::Range;

use super::encoding::Encoded;
use super::feed::Blocks;
use super::output::Place;
use crate::source::Failure;

/// A block's number: its input, and how many blocks of that come before it.
pub type Turn = (usize, u64);

/// A block that waits for its turn.
pub struct Done {
    pub place: Place,
    pub encoded: Result<Encoded, Failure>,
    /// What it takes in memory.
    pub cost: usize,
}

/// An input that is open.
struct Slot {
    /// `None` while a thread reads.
    blocks: Option<Box<dyn Blocks>>,
    /// The number of its next block.
    next_block: u64,
    /// Whether inputs behind it may be read while a thread reads this one.
    may_pass: bool,
}

/// What a free thread is to do.
pub enum Task {
    /// Read the next block of an input that is open.
    Read(Turn, Box<dyn Blocks>),
    /// Open this input and read its first block.
    Open(usize),
    /// Nothing yet.
    Wait,
    /// All blocks are taken.
    Nothing,
}

/// What threads share under one lock.
pub struct Schedule {
    slots: BTreeMap<usize, Slot>,
    /// The inputs that have not been opened.
    unopened: Range<usize>,
    /// No block of this input or those behind it is wanted: it has one that failed.
    limit: usize,
    /// The block to be written next.
    turn: Turn,
    waiting: BTreeMap<Turn, Done>,
    is_writing: bool,
    /// How many inputs may be open.
    most_open: usize,
    /// What blocks may take in memory, what they take, and what a new one is thought to take.
    budget: usize,
    taken: usize,
    block_cost: usize,
    /// How many blocks have been taken and not been written.
    in_flight: usize,
    /// Buffers to be used again.
    free_bytes: Vec<Vec<u8>>,
    free_ids: Vec<Encoded>,
}

impl Schedule {
    pub fn new(unopened: Range<usize>, most_open: usize, budget: usize, block_cost: usize) -> Self {
        Self {
            slots: BTreeMap::new(),
            turn: (unopened.start, 0),
            unopened,
            limit: usize::MAX,
            waiting: BTreeMap::new(),
            is_writing: false,
            most_open,
            budget,
            taken: 0,
            block_cost,
            in_flight: 0,
            free_bytes: Vec::new(),
            free_ids: Vec::new(),
        }
    }

    /// Has blocks of `input` without opening anything.
    pub fn add_open(&mut self, input: usize, blocks: Box<dyn Blocks>) {
        self.turn = (input, 0);
        self.slots.insert(input, Slot { blocks: Some(blocks), next_block: 0, may_pass: false });
    }

    /// The next task for a thread; what it takes in memory is set aside.
    pub fn next(&mut self, may_pass: impl Fn(usize) -> bool) -> Task {
        let task = self.find(may_pass);
        if matches!(task, Task::Read(..) | Task::Open(_)) {
            self.taken += self.block_cost;
            self.in_flight += 1;
        }
        task
    }

    /// The earliest open input that nobody reads; else the next that can be opened.
    fn find(&mut self, may_pass: impl Fn(usize) -> bool) -> Task {
        let (turn, has_room) = (self.turn, self.taken + self.block_cost <= self.budget);
        // What is to be written next must always be taken, or all would wait for it.
        let may_take = |input: usize, next_block: u64| has_room || (input, next_block) == turn;
        for (&input, slot) in &mut self.slots {
            if input >= self.limit {
                break;
            }
            if !may_take(input, slot.next_block) {
                return Task::Wait;
            }
            if let Some(blocks) = slot.blocks.take() {
                slot.next_block += 1;
                return Task::Read((input, slot.next_block - 1), blocks);
            }
            if !slot.may_pass {
                return Task::Wait;
            }
        }
        let input = self.unopened.start;
        if self.unopened.is_empty() || input >= self.limit {
            let wanted = self.slots.keys().next().is_some_and(|first| *first < self.limit);
            return if wanted { Task::Wait } else { Task::Nothing };
        }
        if self.slots.len() >= self.most_open || !may_take(input, 0) {
            return Task::Wait;
        }
        self.unopened.start += 1;
        let slot = Slot { blocks: None, next_block: 1, may_pass: may_pass(input) };
        self.slots.insert(input, slot);
        Task::Open(input)
    }

    /// A block has been read: others may read on. `blocks` is `None` if it was the last. Now it is
    /// known what it takes in memory.
    pub fn has_read(&mut self, input: usize, blocks: Option<Box<dyn Blocks>>, cost: usize) {
        self.taken = self.taken + cost - self.block_cost;
        match (blocks, self.slots.get_mut(&input)) {
            (Some(blocks), Some(slot)) => slot.blocks = Some(blocks),
            _ => drop(self.slots.remove(&input)),
        }
    }

    /// There was no block to be read.
    pub fn has_nothing(&mut self, input: usize) {
        self.has_read(input, None, 0);
        self.in_flight -= 1;
    }

    /// Whether all blocks that were taken are written.
    pub fn is_done(&self) -> bool {
        self.in_flight == 0
    }

    /// A block is encoded, or has failed, and waits for its turn. `cost` is what it took until now.
    pub fn has_encoded(&mut self, turn: Turn, done: Done, cost: usize) {
        if done.encoded.is_err() {
            self.limit = self.limit.min(turn.0);
        }
        self.taken = self.taken + done.cost - cost;
        self.waiting.insert(turn, done);
    }

    /// The block to be written next, if it is there and no thread is writing.
    pub fn next_to_write(&mut self) -> Option<Done> {
        if self.is_writing {
            return None;
        }
        let done = self.waiting.remove(&self.turn)?;
        self.is_writing = true;
        Some(done)
    }

    /// The block is written.
    pub fn has_written(&mut self, is_last: bool, cost: usize) {
        self.is_writing = false;
        self.in_flight -= 1;
        self.taken -= cost;
        self.turn = if is_last { (self.turn.0 + 1, 0) } else { (self.turn.0, self.turn.1 + 1) };
    }

    /// Buffers that were used before.
    pub fn buffers(&mut self) -> (Vec<u8>, Encoded) {
        (self.free_bytes.pop().unwrap_or_default(), self.free_ids.pop().unwrap_or_default())
    }

    /// Keeps buffers for the next block, unless they are large or many.
    pub fn keep(&mut self, bytes: Option<Vec<u8>>, ids: Option<Encoded>) {
        let fits = |cost: usize| cost <= self.block_cost;
        if let Some(bytes) = bytes.filter(|bytes| fits(bytes.capacity()))
            && self.free_bytes.len() < self.most_open
        {
            self.free_bytes.push(bytes);
        }
        if let Some(mut ids) = ids.filter(|ids| fits(ids.cost()))
            && self.free_ids.len() < 2 * self.most_open
        {
            ids.clear();
            self.free_ids.push(ids);
        }
    }
}
