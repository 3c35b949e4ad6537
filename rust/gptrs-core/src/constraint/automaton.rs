//! A pattern as a machine that reads bytes.

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};

/// The state of texts that nothing makes a match any more.
pub(super) const DEAD: u32 = 0;
/// The state of the empty text.
pub(super) const START: u32 = 1;
/// How far away a match is that no text leads to.
pub(super) const NEVER: u32 = u32::MAX;

// What an automaton may take, and each stage of its making. The search for so many states ends within
// a second; 2,000 texts of 50 characters take half of it.
const MOST_BYTES: usize = 1 << 25;

/// A deterministic automaton over bytes, for the texts that match a pattern from start to end. From
/// every state but `DEAD` some bytes lead to a match.
#[derive(Debug)]
pub(super) struct Automaton {
    /// Bytes of one class lead to the same state, wherever they are read.
    classes: Box<[u8; 256]>,
    num_classes: usize,
    /// `[states, classes]`: the state after a byte of a class.
    next: Vec<u32>,
    /// `[states]`: whether the text is a match.
    accepting: Vec<bool>,
    /// `[states]`: where most bytes lead.
    usual: Vec<Usual>,
}

/// A state that many classes lead to from another.
#[derive(Debug, Clone, Copy)]
struct Usual {
    next: u32,
    /// The classes, as [`class_bit`]s.
    classes: u64,
}

/// A class's bit in a set of classes. From the 65th on classes share bits.
pub(super) fn class_bit(class: u8) -> u64 {
    1 << (class % 64)
}

impl Automaton {
    /// The automaton of a pattern in the syntax of regex-syntax, or why there is none.
    pub(super) fn of_regex(pattern: &str) -> Result<Self, String> {
        let nfa = thompson::Config::new()
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(MOST_BYTES));
        let config = dense::Config::new()
            // All texts that match, not the first that a search would find.
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Anchored)
            .accelerate(false)
            .dfa_size_limit(Some(MOST_BYTES))
            .determinize_size_limit(Some(MOST_BYTES));
        let dfa = dense::Builder::new()
            .configure(config)
            .thompson(nfa)
            .build(pattern)
            .map_err(|error| reason(&error))?;
        let mut automaton = Self::of_dfa(&dfa)?;
        automaton.prune();
        automaton.usual = automaton.usual();
        Ok(automaton)
    }

    /// The automaton of some texts: their prefix tree.
    pub(super) fn of_texts(texts: &[String]) -> Result<Self, String> {
        // Class 0 is that of the bytes that no text has; there are always some.
        let mut classes = Box::new([0; 256]);
        let mut num_classes = 1;
        for byte in texts.iter().flat_map(|text| text.bytes()) {
            if classes[usize::from(byte)] == 0 {
                classes[usize::from(byte)] = num_classes as u8;
                num_classes += 1;
            }
        }
        let next = vec![DEAD; 2 * num_classes];
        let mut automaton =
            Self { classes, num_classes, next, accepting: vec![false; 2], usual: vec![] };
        for text in texts {
            let end = text.bytes().fold(START, |state, byte| automaton.add_after(state, byte));
            automaton.accepting[end as usize] = true;
            if size_of_val(&*automaton.next) > MOST_BYTES {
                return Err(too_large());
            }
        }
        automaton.usual = automaton.usual();
        Ok(automaton)
    }

    /// The state after a byte, which is a new one if there was none.
    fn add_after(&mut self, state: u32, byte: u8) -> u32 {
        let at = state as usize * self.num_classes + usize::from(self.class(byte));
        if self.next[at] == DEAD {
            self.next[at] = self.num_states() as u32;
            self.next.resize(self.next.len() + self.num_classes, DEAD);
            self.accepting.push(false);
        }
        self.next[at]
    }

    /// Numbers the states that bytes lead to, from the start on.
    fn of_dfa(dfa: &dense::DFA<Vec<u32>>) -> Result<Self, String> {
        let config = start::Config::new().anchored(Anchored::Yes);
        let start = dfa.start_state(&config).map_err(|error| error.to_string())?;
        if dfa.is_dead_state(start) {
            return Err("no text matches".into());
        }
        let bytes = dfa.byte_classes();
        // The last class is the end of the text.
        let num_classes = bytes.alphabet_len() - 1;
        let mut classes = Box::new([0; 256]);
        let mut members = vec![0; num_classes];
        for byte in 0..=255 {
            classes[usize::from(byte)] = bytes.get(byte);
            members[usize::from(bytes.get(byte))] = byte;
        }
        let mut automaton =
            Self { classes, num_classes, next: vec![], accepting: vec![], usual: vec![] };
        let mut states = vec![StateID::ZERO, start]; // The first is dead in every DFA.
        let mut numbers = vec![u32::MAX; (dfa.memory_usage() / 4) >> dfa.stride2()];
        for (number, state) in states.iter().enumerate().rev() {
            numbers[state.as_usize() >> dfa.stride2()] = number as u32;
        }
        while let Some(&state) = states.get(automaton.accepting.len()) {
            let is_match = dfa.is_match_state(dfa.next_eoi_state(state));
            automaton.accepting.push(is_match);
            automaton.next.extend(members.iter().map(|&byte| {
                let next = dfa.next_state(state, byte);
                let number = &mut numbers[next.as_usize() >> dfa.stride2()];
                if *number == u32::MAX {
                    *number = states.len() as u32;
                    states.push(next);
                }
                *number
            }));
        }
        Ok(automaton)
    }

    /// Makes dead what never becomes a match, such as what follows a `$`.
    fn prune(&mut self) {
        let distances = self.bytes_to_match();
        for to in &mut self.next {
            if distances[*to as usize] == NEVER {
                *to = DEAD;
            }
        }
    }

    /// Where most bytes lead from each state, and which of their classes.
    fn usual(&self) -> Vec<Usual> {
        let mut class_sizes = vec![0; self.num_classes];
        for &class in self.classes.iter() {
            class_sizes[usize::from(class)] += 1;
        }
        let mut num_bytes = vec![0_u32; self.num_states()];
        let rows = self.next.chunks_exact(self.num_classes);
        let usual = rows.map(|row| {
            let mut most = (0, DEAD);
            for (&to, size) in row.iter().zip(&class_sizes).filter(|&(&to, _)| to != DEAD) {
                num_bytes[to as usize] += size;
                most = most.max((num_bytes[to as usize], to));
            }
            for &to in row {
                num_bytes[to as usize] = 0;
            }
            let others = row.iter().enumerate().filter(|&(_, &to)| to != most.1);
            let classes = !others.fold(0, |bits, (class, _)| bits | class_bit(class as u8));
            Usual { next: most.1, classes }
        });
        usual.collect()
    }

    /// Of each state, how many bytes lead to a match at least, or `NEVER`.
    pub(super) fn bytes_to_match(&self) -> Vec<u32> {
        let mut steps = Vec::new();
        for (from, row) in self.next.chunks_exact(self.num_classes).enumerate() {
            let from = from as u32;
            for &to in row {
                // Most classes next to each other lead to the same state.
                if to != DEAD && steps.last() != Some(&(from, to)) {
                    steps.push((from, to));
                }
            }
        }
        self.steps_to_match(steps)
    }

    /// Of each state, how many of the steps (from, to) lead to a match at least, or `NEVER`.
    pub(super) fn steps_to_match(&self, mut steps: Vec<(u32, u32)>) -> Vec<u32> {
        steps.sort_unstable_by_key(|&(_, to)| to);
        let mut distances = vec![NEVER; self.num_states()];
        let mut queue: Vec<u32> =
            (START..self.num_states() as u32).filter(|&state| self.is_match(state)).collect();
        for &state in &queue {
            distances[state as usize] = 0;
        }
        let mut num_done = 0;
        while let Some(&to) = queue.get(num_done) {
            num_done += 1;
            let first = steps.partition_point(|step| step.1 < to);
            for &(from, _) in steps[first..].iter().take_while(|step| step.1 == to) {
                if distances[from as usize] == NEVER {
                    distances[from as usize] = distances[to as usize] + 1;
                    queue.push(from);
                }
            }
        }
        distances
    }

    /// The state after a byte.
    pub(super) fn after(&self, state: u32, byte: u8) -> u32 {
        self.after_class(state, self.class(byte))
    }

    /// The state after a byte of a class.
    #[inline(always)]
    pub(super) fn after_class(&self, state: u32, class: u8) -> u32 {
        self.next[state as usize * self.num_classes + usize::from(class)]
    }

    /// The state after any byte of some classes, if that is one state, and easily seen.
    #[inline(always)]
    pub(super) fn after_any_of(&self, state: u32, classes: u64) -> Option<u32> {
        let usual = self.usual[state as usize];
        (classes & !usual.classes == 0).then_some(usual.next)
    }

    /// The class of a byte.
    pub(super) fn class(&self, byte: u8) -> u8 {
        self.classes[usize::from(byte)]
    }

    /// Of each class, whether its bytes lead anywhere from anywhere.
    pub(super) fn live_classes(&self) -> Vec<bool> {
        let mut live = vec![false; self.num_classes];
        for row in self.next.chunks_exact(self.num_classes) {
            for (live, &to) in live.iter_mut().zip(row) {
                *live |= to != DEAD;
            }
        }
        live
    }

    /// Whether the text is a match.
    pub(super) fn is_match(&self, state: u32) -> bool {
        self.accepting[state as usize]
    }

    /// `DEAD` among them.
    pub(super) fn num_states(&self) -> usize {
        self.accepting.len()
    }
}

/// Why an automaton could not be built, in one line.
fn reason(error: &dense::BuildError) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    let nfa = source.downcast_ref::<thompson::BuildError>();
    if error.is_size_limit_exceeded() || nfa.is_some_and(|nfa| nfa.size_limit().is_some()) {
        return too_large();
    }
    // A syntax error draws the rewritten pattern, which nobody asked for, above what is wrong.
    let message = source.to_string();
    message.rsplit("error: ").next().unwrap_or_default().to_owned()
}

fn too_large() -> String {
    format!("it is too large: its automaton would take over {} MiB", MOST_BYTES >> 20)
}
