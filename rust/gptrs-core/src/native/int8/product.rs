//! Products of weights and inputs in eight bits.

use super::super::lanes::{Found, GROUP, LANES, Operands, Simd, Work, dispatch};
use super::super::math::filled;
use super::super::shared::Columns;
use super::super::tile::AHEAD_BYTES;
use super::{Input, PackedRows, Quantized};

/// Parts of one input's sums: each step of a sum waits for the one before. They are whole numbers, so that
/// bits do not depend on it.
const PARTS: usize = 2;

/// `out[t][r] += rows[r] . inputs[t]`.
pub struct MatMulI8<'a> {
    pub rows: PackedRows<'a>,
    pub inputs: Quantized<'a>,
    pub num_inputs: usize,
    pub out: Columns<'a>,
}

impl MatMulI8<'_> {
    /// Multiplies all inputs with all rows. Every shape of a tile is compiled by itself, as in `tile`.
    pub fn run(self, found: Found) {
        match self.num_inputs {
            // Two streams of memory.
            1 if found.reads_ahead() => dispatch(found, OneInput::<2, false>(self)),
            1 => dispatch(found, OneInput::<2, true>(self)),
            2 => dispatch(found, Stream::<2, 2, true>(self)),
            3 | 4 => dispatch(found, Stream::<1, 4, true>(self)),
            5..=8 => dispatch(found, Stream::<1, 8, true>(self)),
            _ => dispatch(found, PassBy(self)),
        }
    }
}

/// One input with all blocks, as `Stream`, but that hardly anything happens between them.
struct OneInput<'a, const B: usize, const LOOKS_AHEAD: bool>(MatMulI8<'a>);

impl<const B: usize, const LOOKS_AHEAD: bool> Work for OneInput<'_, B, LOOKS_AHEAD> {
    type Output = ();

    const OPERANDS: Operands = Operands::Bytes;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(MatMulI8 { rows, inputs, mut out, .. }) = self;
        let input = inputs.row(0);
        let size = inputs.padded / GROUP;
        let (blocks, scales) = (rows.groups(), rows.block_scales());
        let distance = scales.len() / B;
        let out = &mut out.row(0)[..rows.count];
        let mut streams = [blocks; B];
        for b in 0..B {
            streams[b] = &blocks[b * distance * size..][..distance * size];
        }
        for block in 0..distance {
            let tiled = streams.map(|blocks| &blocks[block * size..(block + 1) * size]);
            let [sums] = sums::<S, B, 1, LOOKS_AHEAD>(simd, tiled, [input]);
            for (b, sums) in sums.into_iter().enumerate() {
                let block = block + b * distance;
                add(simd, sums, &scales[block], &mut out[block * LANES..]);
            }
        }
        for block in B * distance..scales.len() {
            let tiled = [&blocks[block * size..(block + 1) * size]];
            let [[sum]] = sums::<S, 1, 1, LOOKS_AHEAD>(simd, tiled, [input]);
            add(simd, sum, &scales[block], &mut out[block * LANES..]);
        }
    }
}

/// At most C inputs with all blocks, each of which is read once, from end to end; B at a time, which are
/// far apart. Where it looks ahead, memory is asked for what comes soon.
struct Stream<'a, const B: usize, const C: usize, const LOOKS_AHEAD: bool>(MatMulI8<'a>);

impl<const B: usize, const C: usize, const LOOKS_AHEAD: bool> Work
    for Stream<'_, B, C, LOOKS_AHEAD>
{
    type Output = ();

    const OPERANDS: Operands = Operands::Bytes;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(mut all) = self;
        let num_blocks = all.num_blocks();
        let distance = num_blocks.div_ceil(B);
        for block in 0..distance {
            let height = (num_blocks - block).div_ceil(distance);
            let tile = Tile { block, distance, height, input: 0 };
            all.meet::<S, B, C, LOOKS_AHEAD>(simd, tile);
        }
    }
}

/// All inputs with one block after the other, which stays near.
struct PassBy<'a>(MatMulI8<'a>);

impl Work for PassBy<'_> {
    type Output = ();

    const OPERANDS: Operands = Operands::Bytes;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(mut all) = self;
        for block in 0..all.num_blocks() {
            let mut input = 0;
            while input < all.num_inputs {
                let tile = Tile { block, distance: 1, height: 1, input };
                input += match all.num_inputs - input {
                    1..=4 => all.meet::<S, 1, 4, false>(simd, tile),
                    _ => all.meet::<S, 1, 8, false>(simd, tile),
                };
            }
        }
    }
}

/// Which blocks of rows and which inputs.
#[derive(Clone, Copy)]
struct Tile {
    block: usize,
    /// From a block to the next.
    distance: usize,
    /// How many of the blocks there are.
    height: usize,
    /// The first input.
    input: usize,
}

impl MatMulI8<'_> {
    fn num_blocks(&self) -> usize {
        self.rows.block_scales().len()
    }

    /// C inputs with B blocks of rows: how many inputs there were. Where there are fewer, the last counts
    /// several times.
    #[inline(always)]
    fn meet<S: Simd, const B: usize, const C: usize, const LOOKS_AHEAD: bool>(
        &mut self,
        simd: S,
        Tile { block, distance, height, input }: Tile,
    ) -> usize {
        let num_inputs = C.min(self.num_inputs - input);
        let size = self.inputs.padded / GROUP;
        let all = self.rows.groups();
        let mut blocks = [&all[..0]; B];
        for (b, blocks) in blocks.iter_mut().enumerate() {
            let at = block + b.min(height - 1) * distance;
            *blocks = &all[at * size..][..size];
        }
        let mut inputs = [self.inputs.row(input); C];
        for (c, place) in inputs.iter_mut().enumerate().skip(1) {
            *place = self.inputs.row(input + c.min(num_inputs - 1));
        }
        let sums = sums::<S, B, C, LOOKS_AHEAD>(simd, blocks, inputs);
        for b in 0..height {
            let block = block + b * distance;
            let scales = &self.rows.block_scales()[block];
            for (c, sums) in sums.iter().enumerate().take(num_inputs) {
                let out = &mut self.out.row(input + c)[..self.rows.count];
                add(simd, sums[b], scales, &mut out[block * LANES..]);
            }
        }
        num_inputs
    }
}

/// Adds sixteen rows' sums to where they belong: to the first of these, as far as there are so many.
#[inline(always)]
fn add<S: Simd>(simd: S, sums: S::F, scales: &[f32; LANES], out: &mut [f32]) {
    let scales = simd.load(scales);
    if let Some(out) = out.first_chunk_mut::<LANES>() {
        simd.store(simd.mul_add(sums, scales, simd.load(out)), out);
    } else {
        let mut all = filled(out, 0.0);
        simd.store(simd.mul_add(sums, scales, simd.load(&all)), &mut all);
        out.copy_from_slice(&all[..out.len()]);
    }
}

impl Input<'_> {
    /// The first groups.
    #[inline(always)]
    fn first(self, count: usize) -> Self {
        let Self { groups, starts, scales } = self;
        Self { groups: &groups[..count], starts: &starts[..count], scales: &scales[..count] }
    }
}

/// B x C sums of sixteen rows each.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "loops over registers, which iterators hide")]
fn sums<S: Simd, const B: usize, const C: usize, const LOOKS_AHEAD: bool>(
    simd: S,
    blocks: [&[[[u8; GROUP]; LANES]]; B],
    inputs: [Input<'_>; C],
) -> [[S::F; B]; C] {
    let count = inputs[0].groups.len();
    let (blocks, inputs) =
        (blocks.map(|blocks| &blocks[..count]), inputs.map(|input| input.first(count)));
    let mut sums = [[simd.splat(0.0); B]; C];
    for k in 0..count {
        let mut whole = [[[simd.no_sums(); PARTS]; B]; C];
        for q in 0..LANES {
            for b in 0..B {
                let weights = &blocks[b][k][q];
                if LOOKS_AHEAD {
                    simd.prefetch(weights.as_ptr().wrapping_add(AHEAD_BYTES));
                }
                for c in 0..C {
                    let part = if C == 1 { q % PARTS } else { 0 };
                    let sums = &mut whole[c][b][part];
                    *sums = simd.add_products(*sums, weights, inputs[c].groups[k][q]);
                }
            }
        }
        for c in 0..C {
            let scale = simd.splat(inputs[c].scales[k]);
            for b in 0..B {
                let mut all = whole[c][b][0];
                if C == 1 {
                    all = simd.add_sums(all, whole[c][b][1]);
                }
                let products = simd.sums_to_floats(all, inputs[c].starts[k]);
                sums[c][b] = simd.mul_add(products, scale, sums[c][b]);
            }
        }
    }
    sums
}
