//! The instructions, and the loops around them.

#![allow(unsafe_code, reason = "tile and vector instructions; each use says why it is sound")]
#![allow(clippy::needless_range_loop, reason = "loops over registers, which iterators hide")]
#![allow(clippy::unused_self, reason = "a value stands for what the processor has")]

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_add_ps,
    _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_cvtne2ps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_storeu_ps, _mm512_storeu_si512,
};
use std::marker::PhantomData;
use std::mem::transmute;
use std::sync::OnceLock;

use super::super::int8::{BLOCK_GROUP, MatMulI8, Quantized};
use super::super::lanes::GROUP;
use super::super::lanes::x86::words::transposed;
use super::super::shared::Columns;
use super::{DEPTH, MatMulBf16, Product, SIDE};

/// Bytes from one row of a packed tile to the next.
const LINE: usize = 64;
/// Rows of weights that stay in L2 while inputs pass by.
const BLOCK_ROWS: usize = 128;
/// Inputs up to this many are written to their places one by one.
const FEW: usize = 2;

/// That the processor has tiles and the vector instructions used here, and that this process may use them.
#[derive(Debug, Clone, Copy)]
pub struct Tiles(());

impl Tiles {
    /// Asks processor and system, once.
    pub fn find() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        let has_vectors = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512vnni");
        let found = FOUND.get_or_init(|| has_vectors && has_amx() && may_use_tiles());
        found.then_some(Self(()))
    }

    /// Gives this thread's eight tiles their full size.
    pub fn make_ready(self) -> ReadyTiles {
        #[repr(align(64))]
        struct Settings([u8; 64]);
        let mut settings = Settings([0; 64]);
        settings.0[0] = 1;
        for tile in 0..8 {
            settings.0[16 + 2 * tile] = LINE as u8;
            settings.0[48 + tile] = SIDE as u8;
        }
        // SAFETY: there are tiles; these are 64 bytes of valid settings.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const settings, options(nostack, readonly)) };
        ReadyTiles(PhantomData)
    }
}

fn has_amx() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    let wanted = BF16 | TILE | INT8;
    // SAFETY: x86-64 has this instruction; unknown leaves give zeros.
    #[allow(unused_unsafe, reason = "safe in newer versions of Rust")]
    let leaves = unsafe { __cpuid_count(0, 0) }.eax;
    // SAFETY: as above.
    #[allow(unused_unsafe, reason = "safe in newer versions of Rust")]
    let features = unsafe { __cpuid_count(7, 0) }.edx;
    leaves >= 7 && features & wanted == wanted
}

/// Linux makes room for tiles only for processes that ask.
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: this call reads and writes no memory of ours; it changes rcx, r11 and rax.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

/// This thread's tiles, at their full size for as long as this lives.
#[derive(Debug)]
pub struct ReadyTiles(PhantomData<*mut ()>);

impl Drop for ReadyTiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles; nobody else on this thread uses them now.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl ReadyTiles {
    /// Rounds at most sixteen inputs to bfloat16, and puts pairs of their columns where tiles want
    /// them: `[columns / 2][SIDE]`. Places of inputs that there are not are left as they are.
    pub fn pack(&self, inputs: &[f32], columns: usize, out: &mut [u32]) {
        let count = inputs.len() / columns;
        assert!(count <= SIDE && columns.is_multiple_of(DEPTH) && out.len() == columns / 2 * SIDE);
        // SAFETY: `Tiles::find` has found these instructions.
        unsafe { pack(inputs, columns, count, out) }
    }

    /// Does it.
    pub fn multiply_bf16(&self, mut job: MatMulBf16<'_>) {
        let group = job.columns / 2 * SIDE;
        assert!(
            job.rows.end * job.columns <= job.matrix.len() && job.columns.is_multiple_of(DEPTH)
        );
        assert!(job.num_inputs.div_ceil(SIDE) * group <= job.inputs.len());
        assert!(job.matrix.len() >= SIDE * job.columns);
        // SAFETY: `Tiles::find` has found these instructions, and the tiles are ready; sixteen rows
        // from any first row that `bf16_tiles` is given, and sixteen inputs of any group, are there.
        unsafe { multiply_bf16(&mut job) }
    }

    /// Does it: the same sums as on vectors, to the bit.
    pub fn multiply_i8(&self, mut job: MatMulI8<'_>) {
        let Quantized { bytes, starts, scales, padded } = job.inputs;
        let rows = job.num_inputs.next_multiple_of(SIDE);
        assert!(padded.is_multiple_of(GROUP) && rows * padded <= bytes.len());
        assert!(rows * padded / GROUP <= starts.len().min(scales.len()));
        assert!(job.rows.bytes.len() == job.rows.scales.len() * padded);
        // SAFETY: `Tiles::find` has found these instructions, and the tiles are ready; blocks are whole,
        // and sixteen inputs of any group are there.
        unsafe { multiply_i8(&mut job) }
    }

    /// Does it.
    pub fn multiply(&self, mut product: Product<'_>) {
        let Product { left, right, rows, columns, depth, out_stride, .. } = product;
        if rows == 0 || columns == 0 || depth == 0 {
            return;
        }
        assert!(rows.is_multiple_of(2 * SIDE) && columns.is_multiple_of(2 * SIDE));
        assert!(depth.is_multiple_of(SIDE));
        assert!(depth <= left.stride && columns <= right.stride && columns <= out_stride);
        assert!((rows - 1) * left.stride + depth <= left.words.len());
        assert!((depth - 1) * right.stride + columns <= right.words.len());
        assert!((rows - 1) * out_stride + columns <= product.out.len());
        for row in (0..rows).step_by(2 * SIDE) {
            for column in (0..columns).step_by(2 * SIDE) {
                // SAFETY: the tiles are ready; all rows of all four are inside, as was just checked.
                unsafe { product_tiles(&mut product, row, column) };
            }
        }
    }
}

/// Loads a tile whose rows are `stride` bytes apart.
///
/// # Safety
/// Tiles are ready; sixteen rows of 64 bytes are there.
#[inline(always)]
unsafe fn load<const TILE: u8>(from: *const u8, stride: usize) {
    // SAFETY: the caller's.
    unsafe {
        asm!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const TILE, from = in(reg) from,
            stride = in(reg) stride, options(nostack, readonly));
    }
}

/// # Safety
/// Tiles are ready.
#[inline(always)]
unsafe fn zero<const TILE: u8>() {
    // SAFETY: the caller's.
    unsafe { asm!("tilezero tmm{t}", t = const TILE, options(nostack, nomem)) }
}

/// # Safety
/// Tiles are ready.
#[inline(always)]
unsafe fn store<const TILE: u8>(to: &mut Sums) {
    // SAFETY: the caller's; this is sixteen rows of 64 bytes.
    unsafe { store_to::<TILE>(to.0.as_mut_ptr().cast(), LINE) }
}

/// SUMS += A B, in bfloat16.
///
/// # Safety
/// Tiles are ready.
#[inline(always)]
unsafe fn add_bf16<const SUMS: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's.
    unsafe {
        asm!("tdpbf16ps tmm{sums}, tmm{a}, tmm{b}", sums = const SUMS, a = const A, b = const B,
            options(nostack, nomem));
    }
}

/// SUMS += A B, of signed and unsigned bytes.
///
/// # Safety
/// Tiles are ready.
#[inline(always)]
unsafe fn add_i8<const SUMS: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's.
    unsafe {
        asm!("tdpbsud tmm{sums}, tmm{a}, tmm{b}", sums = const SUMS, a = const A, b = const B,
            options(nostack, nomem));
    }
}

/// Two by two tiles of sums.
///
/// # Safety
/// Tiles are ready; what `ReadyTiles::multiply` checks; 32 rows and columns from here on are inside.
unsafe fn product_tiles(product: &mut Product<'_>, row: usize, column: usize) {
    let Product { left, right, depth, adds, .. } = *product;
    let (left_bytes, right_bytes) = (4 * left.stride, 4 * right.stride);
    let out_bytes = 4 * product.out_stride;
    // SAFETY: the caller's.
    unsafe {
        let left = left.words.as_ptr().add(row * left.stride).cast::<u8>();
        let right = right.words.as_ptr().add(column).cast::<u8>();
        let out = product.out.as_mut_ptr().add(row * product.out_stride + column);
        let (upper, lower) = (out.cast::<u8>(), out.cast::<u8>().add(SIDE * out_bytes));
        if adds {
            load::<0>(upper, out_bytes);
            load::<1>(upper.add(LINE), out_bytes);
            load::<2>(lower, out_bytes);
            load::<3>(lower.add(LINE), out_bytes);
        } else {
            zero::<0>();
            zero::<1>();
            zero::<2>();
            zero::<3>();
        }
        for k in (0..depth).step_by(SIDE) {
            load::<4>(left.add(4 * k), left_bytes);
            load::<6>(right.add(k * right_bytes), right_bytes);
            load::<7>(right.add(k * right_bytes + LINE), right_bytes);
            add_bf16::<0, 4, 6>();
            add_bf16::<1, 4, 7>();
            load::<5>(left.add(4 * k + SIDE * left_bytes), left_bytes);
            add_bf16::<2, 5, 6>();
            add_bf16::<3, 5, 7>();
        }
        store_to::<0>(upper, out_bytes);
        store_to::<1>(upper.add(LINE), out_bytes);
        store_to::<2>(lower, out_bytes);
        store_to::<3>(lower.add(LINE), out_bytes);
    }
}

/// Stores a tile whose rows are `stride` bytes apart.
///
/// # Safety
/// Tiles are ready; sixteen rows of 64 bytes are there, and nobody else's.
#[inline(always)]
unsafe fn store_to<const TILE: u8>(to: *mut u8, stride: usize) {
    // SAFETY: the caller's.
    unsafe {
        asm!("tilestored [{to} + {stride}*1], tmm{t}", t = const TILE, to = in(reg) to,
            stride = in(reg) stride, options(nostack));
    }
}

/// What a tile is stored to.
#[repr(align(64))]
struct Sums([[u32; SIDE]; SIDE]);

impl Sums {
    const ZEROS: Self = Self([[0; SIDE]; SIDE]);
}

#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
unsafe fn pack(inputs: &[f32], columns: usize, count: usize, out: &mut [u32]) {
    for (block, out) in
        out.as_chunks_mut::<SIDE>().0.as_chunks_mut::<SIDE>().0.iter_mut().enumerate()
    {
        let pairs = |input: usize| {
            let from = &inputs[input * columns + block * DEPTH..][..DEPTH];
            // SAFETY: 32 floats.
            unsafe {
                let (low, high) =
                    (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(SIDE)));
                transmute::<_, __m512i>(_mm512_cvtne2ps_pbh(high, low))
            }
        };
        if count <= FEW {
            for input in 0..count {
                // SAFETY: two arrays of sixteen words.
                let pairs = unsafe { transmute::<__m512i, [u32; SIDE]>(pairs(input)) };
                out.iter_mut().zip(pairs).for_each(|(row, pair)| row[input] = pair);
            }
            continue;
        }
        let mut rows = [_mm512_setzero_si512(); SIDE];
        for input in 0..count {
            rows[input] = pairs(input);
        }
        for (place, row) in out.iter_mut().zip(transposed(&rows)) {
            // SAFETY: sixteen words.
            unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), row) };
        }
    }
}

/// # Safety
/// As for `ReadyTiles::multiply_bf16`.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn multiply_bf16(job: &mut MatMulBf16<'_>) {
    let num_groups = job.num_inputs.div_ceil(SIDE);
    let mut block = job.rows.start;
    while block < job.rows.end {
        let end = job.rows.end.min(block + BLOCK_ROWS);
        let mut group = 0;
        while group < num_groups {
            let groups = 2.min(num_groups - group);
            let mut row = block;
            while row < end {
                // SAFETY: whole tiles from `row` on, or the last sixteen rows of what there is.
                row += unsafe {
                    match (groups, end - row) {
                        (2, 32..) => bf16_tiles::<2, 2>(job, row, group),
                        (2, _) => bf16_tiles::<1, 2>(job, row, group),
                        _ => bf16_tiles::<1, 1>(job, row, group),
                    }
                };
            }
            group += groups;
        }
        block = end;
    }
}

/// R tiles of rows, from `row` on, with G groups of inputs: how many rows these were.
///
/// # Safety
/// As for `ReadyTiles::multiply_bf16`; for R > 1, that many whole tiles of rows are there.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn bf16_tiles<const R: usize, const G: usize>(
    job: &mut MatMulBf16<'_>,
    row: usize,
    group: usize,
) -> usize {
    let height = (R * SIDE).min(job.rows.end - row);
    // At the matrix's end the tile begins before: what it has of these rows is behind `skip` others.
    let first = row.min(job.matrix.len() / job.columns - R * SIDE);
    let stride = 2 * job.columns;
    // SAFETY: the caller's: all loads are of sixteen rows of the matrix and of whole packed tiles.
    unsafe {
        let rows = job.matrix.as_ptr().cast::<u8>().add(first * stride);
        let group_bytes = job.columns * 2 * SIDE;
        let inputs = job.inputs.as_ptr().cast::<u8>().add(group * group_bytes);
        zero::<0>();
        zero::<1>();
        zero::<2>();
        zero::<3>();
        for k in 0..job.columns / DEPTH {
            let (rows, inputs) = (rows.add(k * LINE), inputs.add(k * LINE * SIDE));
            if R == 1 && G == 1 {
                prefetch_tile(rows, k, job.columns / DEPTH, stride);
            }
            load::<6>(inputs, LINE);
            load::<4>(rows, stride);
            add_bf16::<0, 4, 6>();
            if G == 2 {
                load::<7>(inputs.add(group_bytes), LINE);
                add_bf16::<1, 4, 7>();
            }
            if R > 1 {
                load::<5>(rows.add(SIDE * stride), stride);
                add_bf16::<2, 5, 6>();
            }
            if R > 1 && G == 2 {
                add_bf16::<3, 5, 7>();
            }
        }
        let mut sums = Sums::ZEROS;
        let mut place =
            Place { out: &mut job.out, num_inputs: job.num_inputs, from: job.rows.start };
        let skip = row - first;
        store::<0>(&mut sums);
        place.add(&sums, first, skip, height.min(SIDE), group);
        if G == 2 {
            store::<1>(&mut sums);
            place.add(&sums, first, skip, height.min(SIDE), group + 1);
        }
        if R > 1 {
            store::<2>(&mut sums);
            place.add(&sums, first + SIDE, 0, SIDE, group);
        }
        if R > 1 && G == 2 {
            store::<3>(&mut sums);
            place.add(&sums, first + SIDE, 0, SIDE, group + 1);
        }
    }
    height
}

/// Asks the memory for the tile that is the turn of some tiles later: of these rows, or the next.
#[inline(always)]
fn prefetch_tile(tile: *const u8, k: usize, count: usize, stride: usize) {
    const AHEAD: usize = 4;
    let next = tile.wrapping_add(AHEAD * LINE);
    let next = if k + AHEAD < count {
        next
    } else {
        next.wrapping_add(SIDE * stride).wrapping_sub(stride)
    };
    for row in 0..SIDE {
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(row * stride).cast()) };
    }
}

/// Where sums of rows and inputs go.
struct Place<'a, 'b> {
    out: &'a mut Columns<'b>,
    num_inputs: usize,
    /// The row whose sums are first there.
    from: usize,
}

impl Place<'_, '_> {
    /// Adds `[row][input]`: of the rows from `first` on, `count` behind the first `skip`.
    #[target_feature(enable = "avx512f,avx512vl")]
    fn add(&mut self, sums: &Sums, first: usize, skip: usize, count: usize, group: usize) {
        let inputs = group * SIDE..self.num_inputs.min((group + 1) * SIDE);
        let place = first + skip - self.from;
        if inputs.len() <= FEW || count < SIDE {
            for (column, input) in inputs.enumerate() {
                let out = &mut self.out.row(input)[place..place + count];
                for (out, sums) in out.iter_mut().zip(&sums.0[skip..]) {
                    *out += f32::from_bits(sums[column]);
                }
            }
            return;
        }
        let mut rows = [_mm512_setzero_si512(); SIDE];
        for (row, sums) in rows.iter_mut().zip(&sums.0) {
            // SAFETY: sixteen words.
            *row = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
        }
        for (input, sums) in inputs.zip(transposed(&rows)) {
            add_to(&mut self.out.row(input)[place..place + SIDE], _mm512_castsi512_ps(sums));
        }
    }
}

/// Adds sixteen sums.
#[target_feature(enable = "avx512f,avx512vl")]
fn add_to(out: &mut [f32], sums: __m512) {
    let out = &mut out[..SIDE];
    // SAFETY: sixteen floats.
    unsafe {
        let all = _mm512_add_ps(_mm512_loadu_ps(out.as_ptr()), sums);
        _mm512_storeu_ps(out.as_mut_ptr(), all);
    }
}

/// # Safety
/// As for `ReadyTiles::multiply_i8`.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn multiply_i8(job: &mut MatMulI8<'_>) {
    let num_blocks = job.rows.scales.len() / SIDE;
    for block in 0..num_blocks {
        for input in (0..job.num_inputs).step_by(SIDE) {
            // SAFETY: the caller's.
            unsafe { i8_tiles(job, block, input) };
        }
    }
}

/// One block of rows, with sixteen inputs.
///
/// # Safety
/// As for `ReadyTiles::multiply_i8`.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn i8_tiles(job: &mut MatMulI8<'_>, block: usize, input: usize) {
    let Quantized { bytes, starts, scales, padded } = job.inputs;
    let count = padded / GROUP;
    let num_inputs = SIDE.min(job.num_inputs - input);
    let mut floats = [_mm512_setzero_ps(); SIDE];
    let mut sums = [Sums::ZEROS; 4];
    // SAFETY: the caller's: blocks and groups of inputs are whole, and each group of columns has its
    // start and scale.
    unsafe {
        let weights = job.rows.bytes.as_ptr().add(block * SIDE * padded);
        let inputs = bytes.as_ptr().cast::<u8>().add(input * padded);
        let mut k = 0;
        // Four at once: tiles are stored long after they are summed up.
        while k < count {
            let width = 4.min(count - k);
            multiply_group::<0, 4, 5>(weights, inputs, k, padded, &mut sums[0]);
            if width > 1 {
                multiply_group::<1, 6, 7>(weights, inputs, k + 1, padded, &mut sums[1]);
            }
            if width > 2 {
                multiply_group::<2, 4, 5>(weights, inputs, k + 2, padded, &mut sums[2]);
            }
            if width > 3 {
                multiply_group::<3, 6, 7>(weights, inputs, k + 3, padded, &mut sums[3]);
            }
            for (number, sums) in sums.iter().enumerate().take(width) {
                for t in 0..SIDE {
                    let at = (input + t) * count + k + number;
                    let start = _mm512_set1_epi32(*starts.get_unchecked(at));
                    let scale = _mm512_set1_ps(*scales.get_unchecked(at));
                    let whole = _mm512_loadu_si512(sums.0[t].as_ptr().cast());
                    let products = _mm512_cvtepi32_ps(_mm512_add_epi32(whole, start));
                    floats[t] = _mm512_fmadd_ps(products, scale, floats[t]);
                }
            }
            k += width;
        }
        let first = block * SIDE;
        let row_scales = _mm512_loadu_ps(job.rows.scales[first..first + SIDE].as_ptr());
        let height = SIDE.min(job.rows.count - first);
        for t in 0..num_inputs {
            let out = &mut job.out.row(input + t)[first..first + height];
            let mut all = [0.0; SIDE];
            all[..height].copy_from_slice(out);
            let sums = _mm512_fmadd_ps(floats[t], row_scales, _mm512_loadu_ps(all.as_ptr()));
            _mm512_storeu_ps(all.as_mut_ptr(), sums);
            out.copy_from_slice(&all[..height]);
        }
    }
}

/// The whole sums of one group of columns.
///
/// # Safety
/// As for `i8_tiles`.
#[inline(always)]
unsafe fn multiply_group<const SUMS: u8, const A: u8, const B: u8>(
    weights: *const u8,
    inputs: *const u8,
    k: usize,
    padded: usize,
    out: &mut Sums,
) {
    // SAFETY: the caller's.
    unsafe {
        zero::<SUMS>();
        load::<A>(inputs.add(k * GROUP), padded);
        load::<B>(weights.add(k * BLOCK_GROUP), LINE);
        add_i8::<SUMS, A, B>();
        store::<SUMS>(out);
    }
}
