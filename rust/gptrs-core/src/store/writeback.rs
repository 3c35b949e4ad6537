//! Tells the kernel to begin writing a file to the disk while more of it is made, so that the sync at
//! the end finds little to do.

#![allow(unsafe_code, reason = "the operating system is asked")]

use std::fs::File;

/// Begins to write bytes that the file has, and does not wait. Only Linux can be told so.
pub(super) fn begin(file: &File, start: u64, num_bytes: u64) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let fd = file.as_raw_fd();
        // SAFETY: the file is open as long as it is borrowed, and the call touches no memory of
        // ours. It is a hint: the sync at the end also reports what goes wrong now.
        unsafe {
            libc::sync_file_range(
                fd,
                start as libc::off64_t,
                num_bytes as libc::off64_t,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, num_bytes);
}
