//! A vocabulary as an automaton sees it: strings of byte classes, in a prefix tree.
//!
//! ```text
//! [0-9]{4}-[0-9]{2}     classes: 0 = digit, 1 = hyphen; every other byte leads nowhere
//! tokens  "19" "20" "7" "-" "-1" "cat"   ─►   0 ─ 0     "7" at 0, "19" and "20" at 00
//!                                             1 ─ 0     "-" at 1, "-1" at 10; "cat" is left out
//! ```
//!
//! Of GPT-2's 50,256 tokens a pattern such as `.*` tells some 3,000 strings apart, and one walk over
//! them from a state finds every token that leads on.

use std::ops::Range;

use super::automaton::{Automaton, DEAD, class_bit};
use super::{TokenBytes, TokenMask};

/// So many tokens next to each other are added to a mask at once, as a mask of their own.
const BLOCK: usize = 1024;

/// The tokens of a vocabulary that may lead somewhere, by their byte classes.
#[derive(Debug)]
pub(super) struct ClassTrie {
    /// In preorder; the last stands behind all tokens.
    nodes: Vec<Node>,
    /// In the order of the nodes: node i has those from its `first_token` to that of node i + 1.
    tokens: Vec<u32>,
    /// The masks of `tokens`, `BLOCK` by `BLOCK`.
    blocks: Vec<TokenMask>,
    max_len: usize,
}

/// One string of classes that tokens begin with, and what is known of all those tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    /// The last class of the string.
    class: u8,
    /// How many classes come before the last.
    depth: u32,
    first_token: u32,
    /// The first node behind those whose strings begin with this one.
    after: u32,
    /// Bit n: some token has n classes more. The last bit: that many, or more than there are bits.
    lengths: u64,
    /// The classes that come behind this string in any token, as [`class_bit`]s.
    classes: u64,
}

const LAST_LENGTH: u64 = 1 << 63;

impl ClassTrie {
    pub(super) fn new(automaton: &Automaton, vocabulary: &TokenBytes) -> Self {
        let strings = Strings::new(automaton, vocabulary);
        let tokens: Vec<u32> = strings.order.iter().map(|&(_, token)| token).collect();
        let blocks = tokens.chunks(BLOCK).map(|block| {
            let mut mask = TokenMask::new(vocabulary.vocab_size());
            for &token in block {
                mask.insert(token);
            }
            mask
        });
        let (blocks, nodes) = (blocks.collect(), nodes(&strings));
        Self { nodes, tokens, blocks, max_len: strings.max_len }
    }

    /// Finds the tokens that lead somewhere from `state`. `may_lead_to` says of a state whether
    /// tokens that lead to it are wanted; `add` gets those that are, as ranges for
    /// [`insert`](Self::insert). Returns how many nodes it looked at. `path` is scratch.
    pub(super) fn walk(
        &self,
        automaton: &Automaton,
        state: u32,
        path: &mut Vec<u32>,
        mut may_lead_to: impl FnMut(u32) -> bool,
        mut add: impl FnMut(Range<u32>),
    ) -> usize {
        path.resize(self.max_len + 1, DEAD);
        path[0] = state;
        let (mut index, mut num_visits, mut found) = (0, 0, 0..0);
        while index + 1 < self.nodes.len() {
            num_visits += 1;
            let node = &self.nodes[index];
            let next = automaton.after_class(path[node.depth as usize], node.class);
            if next == DEAD {
                index = node.after as usize;
                continue;
            }
            path[node.depth as usize + 1] = next;
            let subtree = of_one_kind(automaton, next, node, &mut may_lead_to);
            let after = if subtree.is_some() { node.after as usize } else { index + 1 };
            if subtree.unwrap_or_else(|| node.lengths & 1 == 1 && may_lead_to(next)) {
                if found.end != node.first_token {
                    add(std::mem::replace(&mut found, node.first_token..0));
                }
                found.end = self.nodes[after].first_token;
            }
            index = after;
        }
        add(found);
        num_visits
    }

    /// Adds a range of tokens to a mask.
    pub(super) fn insert(&self, range: Range<u32>, mask: &mut TokenMask) {
        let (mut at, end) = (range.start as usize, range.end as usize);
        while at < end {
            if at.is_multiple_of(BLOCK) && at + BLOCK <= end {
                mask.insert_all(&self.blocks[at / BLOCK]);
                at += BLOCK;
            } else {
                mask.insert(self.tokens[at]);
                at += 1;
            }
        }
    }

    /// Whether every class that leads anywhere has a token of one byte.
    pub(super) fn has_every_byte(&self, automaton: &Automaton) -> bool {
        let mut missing = automaton.live_classes();
        for node in self.nodes.iter().filter(|node| node.depth == 0 && node.lengths & 1 == 1) {
            missing[usize::from(node.class)] = false;
        }
        !missing.contains(&true)
    }
}

/// Whether the tokens of a node's subtree, whose string leads to `state`, are wanted; none if only
/// some are, or a walk has to tell. Most patterns have states, such as those of `[^"]{1,40}`, from
/// which almost every character leads to one state, and from there to one again: what most tokens do
/// there is seen at once.
fn of_one_kind(
    automaton: &Automaton,
    mut state: u32,
    node: &Node,
    may_lead_to: &mut impl FnMut(u32) -> bool,
) -> Option<bool> {
    if node.lengths & LAST_LENGTH != 0 {
        return None;
    }
    let mut kind = None;
    let mut lengths = node.lengths;
    loop {
        if lengths & 1 == 1 {
            let is_wanted = may_lead_to(state);
            if *kind.get_or_insert(is_wanted) != is_wanted {
                return None;
            }
        }
        lengths >>= 1;
        if lengths == 0 {
            return kind;
        }
        state = automaton.after_any_of(state, node.classes)?;
    }
}

/// The prefix tree of strings in their order.
fn nodes(strings: &Strings) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    // The nodes on the way to the newest.
    let mut path: Vec<usize> = Vec::with_capacity(strings.max_len);
    let mut previous: &[u8] = &[];
    for (index, &(_, token)) in strings.order.iter().enumerate() {
        let (string, first_token) = (strings.get(token), index as u32);
        let shared = previous.iter().zip(string).take_while(|(a, b)| a == b).count();
        close(&mut nodes, &mut path, shared);
        for (depth, &class) in string.iter().enumerate().skip(shared) {
            path.push(nodes.len());
            nodes.push(Node { class, depth: depth as u32, first_token, ..Node::default() });
        }
        // Of equal strings, all but the first find their node here.
        nodes[path[string.len() - 1]].lengths |= 1;
        previous = string;
    }
    close(&mut nodes, &mut path, 0);
    nodes.push(Node { first_token: strings.order.len() as u32, ..Node::default() });
    nodes
}

/// Ends a path's nodes but the first few, for nothing more comes below them, and tells their parents.
fn close(nodes: &mut [Node], path: &mut Vec<usize>, depth: usize) {
    while path.len() > depth
        && let Some(index) = path.pop()
    {
        nodes[index].after = nodes.len() as u32;
        let Node { class, lengths, classes, .. } = nodes[index];
        if let Some(&parent) = path.last() {
            nodes[parent].lengths |= lengths << 1 | lengths & LAST_LENGTH;
            nodes[parent].classes |= classes | class_bit(class);
        }
    }
}

/// The tokens as strings of classes; those with a byte that leads nowhere are left out.
struct Strings {
    classes: Vec<u8>,
    /// Token i's classes end here, and begin where the token before ends.
    ends: Vec<u32>,
    /// In the order of the strings; each with its first 8 classes, which decide most comparisons.
    order: Vec<(u64, u32)>,
    max_len: usize,
}

impl Strings {
    fn new(automaton: &Automaton, vocabulary: &TokenBytes) -> Self {
        let live = automaton.live_classes();
        let mut strings = Self { classes: vec![], ends: vec![], order: vec![], max_len: 0 };
        for token in 0..vocabulary.vocab_size() as u32 {
            let start = strings.classes.len();
            let bytes = vocabulary.get(token);
            strings.classes.extend(bytes.iter().map(|&byte| automaton.class(byte)));
            let string = &strings.classes[start..];
            if !string.is_empty() && string.iter().all(|&class| live[usize::from(class)]) {
                strings.max_len = strings.max_len.max(string.len());
                strings.order.push((first_classes(string), token));
            } else {
                strings.classes.truncate(start);
            }
            strings.ends.push(strings.classes.len() as u32);
        }
        let mut order = std::mem::take(&mut strings.order);
        order.sort_unstable_by(|a, b| {
            let by_string = || strings.get(a.1).cmp(strings.get(b.1));
            a.0.cmp(&b.0).then_with(by_string).then(a.1.cmp(&b.1))
        });
        Self { order, ..strings }
    }

    fn get(&self, token: u32) -> &[u8] {
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        &self.classes[start as usize..self.ends[token as usize] as usize]
    }
}

/// The first 8 classes as a number that sorts as they do.
fn first_classes(string: &[u8]) -> u64 {
    let mut first = [0; 8];
    let len = string.len().min(8);
    first[..len].copy_from_slice(&string[..len]);
    u64::from_be_bytes(first)
}
