//! The header of a one-dimensional `.npy` file, always 128 bytes long: a shard can be read by NumPy
//! alone, and its size follows from its count.

/// Every header of ours has this length, so that the values behind it are aligned.
pub const HEADER_BYTES: usize = 128;

/// The header of an array of `count` values; `descr` is NumPy's name of their type, such as `<u2`.
pub fn header(descr: &str, count: u64) -> [u8; HEADER_BYTES] {
    header_of(descr, &format!("{count},"))
}

/// The header of `count` rows of two values.
pub fn pairs_header(descr: &str, count: u64) -> [u8; HEADER_BYTES] {
    header_of(descr, &format!("{count}, 2"))
}

fn header_of(descr: &str, shape: &str) -> [u8; HEADER_BYTES] {
    let mut header = [b' '; HEADER_BYTES];
    header[..10].copy_from_slice(b"\x93NUMPY\x01\x00\x76\x00");
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    header[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
    header[HEADER_BYTES - 1] = b'\n';
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_its_own_length_and_ends_with_a_line() {
        for count in [0, 1, 1 << 28, u64::MAX] {
            let header = header("<u8", count);
            assert_eq!(usize::from(header[8]) + 10, HEADER_BYTES);
            assert!(header.ends_with(b"\n") && header[10] == b'{');
        }
    }
}
