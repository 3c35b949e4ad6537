//! The threads that PyTorch's operators run on.
//!
//! Between two of its operators PyTorch's OpenMP threads spin for milliseconds: threads of our own would
//! have to share processors with them. So the work is given to the same threads, by the function that
//! compilers call for a parallel region, where the process has one (GCC's and LLVM's libraries both do);
//! elsewhere it is given to new threads.

#![allow(unsafe_code, reason = "a function of another library, found by its name")]

use std::ffi::{c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

/// `GOMP_parallel(region, data, num_threads, flags)` calls `region(data)` on so many threads, the
/// caller's among them, and returns when all have.
type Parallel =
    unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Calls `work` on `count` threads at once, of which the caller's is one. Panics where one of them does.
pub fn on_threads(count: usize, work: &(dyn Fn() + Sync)) {
    if count <= 1 {
        return work();
    }
    match find_parallel() {
        Some(parallel) => on_openmp_threads(parallel, count, work),
        None => thread::scope(|scope| {
            for _ in 1..count {
                scope.spawn(work);
            }
            work();
        }),
    }
}

/// The function of the OpenMP library that this process has loaded for all to see, if any.
fn find_parallel() -> Option<Parallel> {
    static FOUND: OnceLock<Option<Parallel>> = OnceLock::new();
    // Asked once: who calls this are PyTorch's operators, so its library is loaded by then.
    *FOUND.get_or_init(look_for_parallel)
}

#[cfg(target_os = "linux")]
fn look_for_parallel() -> Option<Parallel> {
    // SAFETY: the name ends with a zero. Both libraries that have the name give it this type.
    unsafe {
        let found = libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr());
        (!found.is_null()).then(|| std::mem::transmute::<*mut c_void, Parallel>(found))
    }
}

#[cfg(not(target_os = "linux"))]
fn look_for_parallel() -> Option<Parallel> {
    None
}

/// A region's work, and the first panic in it.
struct Region<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

fn on_openmp_threads(parallel: Parallel, count: usize, work: &(dyn Fn() + Sync)) {
    let region = Region { work, panic: Mutex::new(None) };
    let data = (&raw const region).cast_mut().cast();
    // SAFETY: all threads have returned from `run_region` when this returns; it reads the region alone.
    unsafe { parallel(run_region, data, count as c_uint, 0) };
    let panic = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

/// # Safety
/// `data` is a `Region` that lives until this returns.
unsafe extern "C" fn run_region(data: *mut c_void) {
    // SAFETY: the caller's.
    let region = unsafe { &*data.cast::<Region<'_>>() };
    // No panic may pass through another language's frames.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(region.work)) {
        region.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}
