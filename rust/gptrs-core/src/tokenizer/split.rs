//! GPT-2's pattern, by hand: text -> the pieces that are encoded one by one.
//!
//! ```text
//!   '(?:[sdmt]|ll|ve|re)    a contraction: lower-case, and only where a piece starts
//!    ?\p{L}+                letters  ┐
//!    ?\p{N}+                numbers  ├ each with at most one U+0020 before it
//!    ?[^\s\p{L}\p{N}]+      symbols  ┘
//!   \s+(?!\S)               whitespace, but for its last character if something follows
//!   \s+                     that last character, where no U+0020 prefixes what follows
//! ```
//!
//! The alternatives are tried in this order where a piece starts, so `!'s` is `!'` and `s`.
//!
//! A block of 64 bytes becomes a word of 64 bits for each class, and bit arithmetic on these finds
//! all starts of pieces at once:
//!
//! ```text
//!   bytes              I t ' s ␣ ␣ h o t !
//!   a class begins     1 . 1 1 . . 1 . . 1    and no U+0020 before it took the start
//!   whitespace begins  . . . . 1 . . . . .
//!   whitespace ends    . . . . . 1 . . . .    where it is followed by something
//!   contraction        . . . 0 1 . . . . .    no start within, one after it
//!   starts             1 . 1 . 1 1 . . . 1
//! ```

use super::classes::class_of_code;
use super::layout::{LETTER, NUMBER, SPACE};
use super::simd::{self, BLOCK, Classes, Isa, Simd, Work};

/// Splits `text` into GPT-2's pieces; one after the other they are the text.
///
/// ```
/// let pieces: Vec<&str> = gptrs_core::tokenizer::split("I'd say  it's 42!").collect();
/// assert_eq!(pieces, ["I", "'d", " say", " ", " it", "'s", " 42", "!"]);
/// ```
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    let isa = Isa::best().found();
    let mut splitter = Splitter::new(text);
    let mut starts = Starts::default();
    let mut next = 0;
    std::iter::from_fn(move || {
        while next + 1 >= starts.len && splitter.more() {
            starts.keep_last();
            next = 0;
            simd::dispatch(isa, NextBlock { splitter: &mut splitter, starts: &mut starts });
        }
        let &[start, end] = starts.all().get(next..next + 2)? else { return None };
        next += 1;
        Some(&text[starts.base + start as usize..starts.base + end as usize])
    })
}

struct NextBlock<'a, 'text> {
    splitter: &'a mut Splitter<'text>,
    starts: &'a mut Starts,
}

impl Work for NextBlock<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        self.splitter.next_block(simd, self.starts);
    }
}

/// Where pieces start, in bytes from `base`. The last is where the last complete piece ends.
pub struct Starts {
    base: usize,
    places: [u32; Self::CAPACITY],
    len: usize,
}

impl Starts {
    pub const CAPACITY: usize = 256;

    /// How many more starts fit for sure: a block's, and the text's end.
    const ENOUGH: usize = Self::CAPACITY - BLOCK - 1;

    /// Where in the text the places count from: the first start.
    #[inline(always)]
    pub fn base(&self) -> usize {
        self.base
    }

    /// All starts.
    #[inline(always)]
    pub fn all(&self) -> &[u32] {
        &self.places[..self.len.min(Self::CAPACITY)]
    }

    /// Whether another block's starts fit.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.len <= Self::ENOUGH
    }

    /// Forgets all but the last, from which it goes on.
    #[inline(always)]
    pub fn keep_last(&mut self) {
        if let Some(last) = self.len.checked_sub(1) {
            self.base += self.places[last] as usize;
            self.places[0] = 0;
            self.len = 1;
        }
    }

    /// Appends `place` plus the number of each bit that is set.
    #[inline(always)]
    fn push_bits(&mut self, simd: impl Simd, place: usize, bits: u64) {
        debug_assert!(self.has_room());
        if let Some(room) = self.places[self.len..].first_chunk_mut() {
            simd.expand(bits, (place - self.base) as u32, room);
            self.len += bits.count_ones() as usize;
        }
    }

    fn push(&mut self, place: usize) {
        self.places[self.len] = (place - self.base) as u32;
        self.len += 1;
    }
}

impl Default for Starts {
    fn default() -> Self {
        Self { base: 0, places: [0; Self::CAPACITY], len: 0 }
    }
}

/// How far ahead of a block the text is asked for.
const PREFETCH_DISTANCE: usize = 16 * BLOCK;

/// Finds the starts of pieces, block after block.
pub struct Splitter<'text> {
    text: &'text str,
    /// Where the next block starts: at a character.
    base: usize,
    /// The class of the character before it.
    before: Before,
}

/// One character's class, as bit 0 of a word a class; all 0 where nothing is carried over.
#[derive(Default, Clone, Copy)]
struct Before {
    letter: u64,
    number: u64,
    symbol: u64,
    space: u64,
    blank: u64,
}

impl<'text> Splitter<'text> {
    pub fn new(text: &'text str) -> Self {
        Self { text, base: 0, before: Before::default() }
    }

    /// Whether there is text left.
    #[inline(always)]
    pub fn more(&self) -> bool {
        self.base < self.text.len()
    }

    /// How much of the text has been looked at.
    #[inline(always)]
    pub fn position(&self) -> usize {
        self.base
    }

    /// Appends the starts in the next block, at most 64 bytes; after the last block, the text's
    /// length too.
    #[inline(always)]
    pub fn next_block(&mut self, simd: impl Simd, starts: &mut Starts) {
        let rest = &self.text.as_bytes()[self.base..];
        let Some(block) = rest.first_chunk() else {
            let mut block = [0; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            return self.next_unusual_block(simd, simd.classify(&block), rest.len(), starts);
        };
        if let Some(ahead) = rest.get(PREFETCH_DISTANCE) {
            simd::prefetch(ahead);
        }
        let classes = simd.classify(block);
        if classes.high | classes.apostrophe >> (BLOCK - 2) != 0 {
            let len = self.shorten(classes);
            return self.next_unusual_block(simd, classes, len, starts);
        }
        let bits = self.piece_starts(classes, BLOCK);
        self.push_starts(simd, bits, BLOCK, starts);
    }

    /// A block that is not full, or not ASCII.
    #[inline(never)]
    fn next_unusual_block(
        &mut self,
        simd: impl Simd,
        mut classes: Classes,
        len: usize,
        starts: &mut Starts,
    ) {
        self.classify_high(&mut classes, len);
        let bits = self.piece_starts(classes, len);
        self.push_starts(simd, bits, len, starts);
    }

    #[inline(always)]
    fn push_starts(&mut self, simd: impl Simd, bits: u64, len: usize, starts: &mut Starts) {
        starts.push_bits(simd, self.base, bits);
        self.base += len;
        if self.base == self.text.len() {
            starts.push(self.base);
        }
    }

    /// The length of a full block without a character or contraction that may go on after it.
    #[inline(always)]
    fn shorten(&self, classes: Classes) -> usize {
        let apostrophes = classes.apostrophe >> (BLOCK - 2) << (BLOCK - 2);
        let mut len = apostrophes.trailing_zeros() as usize;
        while !self.text.is_char_boundary(self.base + len) {
            len -= 1;
        }
        len
    }

    /// Adds the classes of the characters that are not ASCII to all of their bytes.
    #[inline(always)]
    fn classify_high(&self, classes: &mut Classes, len: usize) {
        let bytes = &self.text.as_bytes()[self.base..];
        // The two bits of each class, at the characters' first bytes: no branch depends on them.
        const { assert!(LETTER == 0b01 && NUMBER == 0b10 && SPACE == 0b11) }
        let [mut low, mut high] = [0; 2];
        let mut firsts = classes.high & !classes.later & low_bits(len);
        while firsts != 0 {
            let at = firsts.trailing_zeros();
            firsts &= firsts - 1;
            let class = u64::from(class_of_code(code_at(bytes, at as usize)));
            low |= (class & 1) << at;
            high |= (class >> 1) << at;
        }
        let fill = |mut bits: u64| {
            for _ in 1..char::MAX.len_utf8() {
                bits |= bits << 1 & classes.later;
            }
            bits
        };
        classes.letter |= fill(low & !high);
        classes.number |= fill(high & !low);
        classes.space |= fill(low & high);
    }

    /// A bit for each of the first `len` bytes at which a piece starts.
    #[inline(always)]
    fn piece_starts(&mut self, classes: Classes, len: usize) -> u64 {
        let valid = low_bits(len);
        let (letter, number) = (classes.letter & valid, classes.number & valid);
        let (space, blank) = (classes.space & valid, classes.blank & valid);
        let symbol = valid & !(letter | number | space);
        let before = self.before;
        let class_begins = letter & !(letter << 1 | before.letter)
            | number & !(number << 1 | before.number)
            | symbol & !(symbol << 1 | before.symbol);
        let after_blank = blank << 1 | before.blank;
        let space_begins = space & !(space << 1 | before.space);
        let mut space_ends = space & !(space >> 1 | self.space_goes_on(len) << (len - 1));
        if space_ends & classes.later != 0 {
            space_ends = to_first_byte(space_ends, classes.later);
        }
        let starts = class_begins & !after_blank | space_begins | space_ends;

        let last = len - 1;
        self.before = Before {
            letter: letter >> last,
            number: number >> last,
            symbol: symbol >> last,
            space: space >> last,
            blank: blank >> last,
        };
        if starts & classes.apostrophe == 0 {
            return starts;
        }
        self.join_contractions(starts, classes.apostrophe, len)
    }

    /// 1 if the character at `len` is whitespace, or the text ends there: whitespace that ends with
    /// the text gives up nothing.
    #[inline(always)]
    fn space_goes_on(&self, len: usize) -> u64 {
        let at = self.base + len;
        match self.text.as_bytes().get(at) {
            None => 1,
            Some(byte) if byte.is_ascii() => ASCII_SPACE >> byte.min(&63) & 1,
            Some(_) => u64::from(class_of_code(code_at(self.text.as_bytes(), at)) == SPACE),
        }
    }

    /// Moves starts from within contractions to behind them.
    #[inline(never)]
    fn join_contractions(&mut self, mut starts: u64, apostrophe: u64, len: usize) -> u64 {
        let bytes = &self.text.as_bytes()[self.base..];
        let mut candidates = starts & apostrophe;
        while candidates != 0 {
            let at = candidates.trailing_zeros() as usize;
            candidates &= candidates - 1;
            let Some(end) = contraction_len(&bytes[at..]).map(|len| at + len) else { continue };
            starts &= !(low_bits(end) & !low_bits(at + 1));
            if end < len {
                starts |= 1 << end;
            } else if end == len {
                // A piece starts with the next block, whatever its class.
                self.before = Before::default();
            }
        }
        starts
    }
}

/// Bit i: the ASCII character with code i is whitespace, the codes from 63 on taken together.
const ASCII_SPACE: u64 = 0b1_1111 << b'\t' | 1 << b' ';

/// The length of the contraction that begins with the apostrophe before it, if it is one.
#[inline(always)]
fn contraction_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [_, b's' | b'd' | b'm' | b't', ..] => Some(2),
        [_, b'l', b'l', ..] | [_, b'v' | b'r', b'e', ..] => Some(3),
        _ => None,
    }
}

/// Moves each bit at a character's later byte to its first.
#[cold]
fn to_first_byte(mut bits: u64, later: u64) -> u64 {
    while bits & later != 0 {
        bits = bits & !later | (bits & later) >> 1;
    }
    bits
}

#[inline(always)]
fn low_bits(count: usize) -> u64 {
    u64::MAX >> (BLOCK - count)
}

/// The code point of the character at byte `at` of a text, which is not ASCII.
#[inline(always)]
fn code_at(text: &[u8], at: usize) -> usize {
    let four = text.get(at..at + 4).and_then(|four| four.first_chunk().copied());
    let [first, second, third, fourth] = four.unwrap_or_else(|| four_at_end(&text[at..]));
    let len = first.leading_ones();
    let bits = |byte: u8| u32::from(byte & 0x3f);
    let first = u32::from(first) & 0x7f >> len;
    let code = first << 18 | bits(second) << 12 | bits(third) << 6 | bits(fourth);
    // What the bytes of the next character left there goes.
    (code >> (6 * (4 - len.min(4)))) as usize
}

/// The last few bytes of a text, filled up.
#[cold]
fn four_at_end(bytes: &[u8]) -> [u8; 4] {
    let mut four = [0; 4];
    four[..bytes.len()].copy_from_slice(bytes);
    four
}

#[cfg(test)]
mod tests {
    use super::super::classes::class_of;
    use super::*;
    use proptest::prelude::*;

    fn pieces(text: &str) -> Vec<&str> {
        split(text).collect()
    }

    #[test]
    fn contractions_are_lower_case_and_lose_to_a_symbol_or_space_before_them() {
        assert_eq!(pieces("we'll"), ["we", "'ll"]);
        assert_eq!(pieces("'sam"), ["'s", "am"]);
        assert_eq!(pieces("WE'LL"), ["WE", "'", "LL"]);
        assert_eq!(pieces("!'s"), ["!'", "s"]);
        assert_eq!(pieces(" 's"), [" '", "s"]);
        assert_eq!(pieces("''s"), ["''", "s"]);
        assert_eq!(pieces("'l"), ["'", "l"]);
        assert_eq!(pieces("'s's've"), ["'s", "'s", "'ve"]);
    }

    #[test]
    fn whitespace_gives_up_its_last_character_except_at_the_end() {
        assert_eq!(pieces("a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces("a \n\nb"), ["a", " \n", "\n", "b"]);
        assert_eq!(pieces("a\nb"), ["a", "\n", "b"]);
        assert_eq!(pieces("a  "), ["a", "  "]);
        assert_eq!(pieces("\u{3000}\u{3000}b"), ["\u{3000}", "\u{3000}", "b"]);
        assert_eq!(pieces("\u{a0}b"), ["\u{a0}", "b"]);
        assert_eq!(pieces(" "), [" "]);
        assert_eq!(pieces(""), [""; 0]);
    }

    #[test]
    fn a_text_is_split_alike_wherever_its_blocks_begin() {
        let text = "we'll say  \u{3000}\u{3000}x'd 'é中\u{1f600}\u{a0}\n' it's 12½'tis\n\n '' ve";
        let expected = pieces(text);
        for shift in 0..3 * BLOCK {
            let filler = ".".repeat(shift) + "\n";
            let shifted = filler.clone() + text + &filler;
            let found: Vec<&str> = split(&shifted).collect();
            let skip = usize::from(shift > 0) + 1;
            assert_eq!(found[skip..skip + expected.len()], expected, "{shift}");
        }
    }

    proptest! {
        #[test]
        fn pieces_concatenate_to_the_text(text in any::<String>()) {
            prop_assert_eq!(split(&text).collect::<String>(), text);
        }

        #[test]
        fn text_may_be_cut_before_whitespace_that_follows_anything_else(
            text in r"([a-c'\P{C}]{0,4}[\s]{0,3}){0,8}",
        ) {
            let chars: Vec<(usize, char)> = text.char_indices().collect();
            for pair in chars.windows(2) {
                let cut = pair[1].0;
                if class_of(pair[0].1) != SPACE && class_of(pair[1].1) == SPACE {
                    let (before, after) = text.split_at(cut);
                    let parts: Vec<&str> = split(before).chain(split(after)).collect();
                    prop_assert_eq!(parts, pieces(&text));
                }
            }
        }
    }
}
