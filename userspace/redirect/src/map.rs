//! Typed access to a kernel map.
//!
//! aya's typed maps want `&mut` for every write, which would put a lock around system calls that
//! the kernel makes atomic already, and do not have "look up and delete".

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
};

use mantled_abi as abi;

use crate::sys;

/// Types that may be copied between kernel and user space as bytes.
///
/// # Safety
/// The type has no padding, no pointers, and every bit pattern is a valid value of it.
pub(crate) unsafe trait Plain: Copy + 'static {}

// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: an array of integers.
unsafe impl Plain for [u32; 4] {}
// SAFETY: mantled-abi's types are `repr(C)`, made of integers, with explicit padding; its own
// documentation says so.
unsafe impl Plain for abi::Config {}
// SAFETY: as above.
unsafe impl Plain for abi::Listener {}
// SAFETY: as above.
unsafe impl Plain for abi::Group {}
// SAFETY: as above.
unsafe impl Plain for abi::GroupCounts {}
// SAFETY: as above.
unsafe impl Plain for abi::Flow {}
// SAFETY: as above.
unsafe impl Plain for abi::Source {}
// SAFETY: as above.
unsafe impl Plain for abi::Destination {}
// SAFETY: as above.
unsafe impl Plain for abi::Unreachable {}
// SAFETY: as above.
unsafe impl Plain for abi::Bypass {}
// SAFETY: as above.
unsafe impl Plain for abi::Event {}
// SAFETY: as above.
unsafe impl Plain for abi::Answer {}
// SAFETY: as above.
unsafe impl Plain for abi::SurveyKey {}
// SAFETY: as above.
unsafe impl Plain for abi::Surveyed {}
// SAFETY: as above.
unsafe impl Plain for abi::NameKey {}
// SAFETY: as above.
unsafe impl Plain for abi::NameEntry {}

/// Key of a longest-prefix-match map: `struct bpf_lpm_trie_key` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix<const N: usize> {
    /// Prefix length in bits.
    pub(crate) length: u32,
    /// Network order.
    pub(crate) bytes: [u8; N],
}

// SAFETY: four bytes and N more, N being a multiple of four.
unsafe impl Plain for Prefix<4> {}
// SAFETY: as above.
unsafe impl Plain for Prefix<16> {}

/// Shows a plain value as bytes.
pub(crate) fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    (bytes.len() >= size_of::<T>()).then(|| {
        // SAFETY: there are enough bytes, and every pattern of them is a valid T.
        unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
    })
}

/// A map of the kernel's; cheap to share, since every call is atomic there.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// `fd` must be a map whose key and value have the sizes of K and V, which is checked.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let (key, value) = sys::map_sizes(fd.as_fd())?;
        if (key as usize, value as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the map holds {key}+{value} bytes an entry, this version of mantled {}+{}",
                    size_of::<K>(),
                    size_of::<V>()
                ),
            ));
        }
        Ok(Self {
            fd,
            types: PhantomData,
        })
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: sizes were checked when self was made.
        let found = unsafe {
            sys::map_lookup(
                self.fd.as_fd(),
                std::ptr::from_ref(key).cast(),
                value.as_mut_ptr().cast(),
            )
        };
        // SAFETY: the kernel has written the value.
        absent(found.map(|()| unsafe { value.assume_init() }))
    }

    /// Looks up and removes in one step.
    pub(crate) fn take(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: as `get`.
        let found = unsafe {
            sys::map_lookup_and_delete(
                self.fd.as_fd(),
                std::ptr::from_ref(key).cast(),
                value.as_mut_ptr().cast(),
            )
        };
        // SAFETY: the kernel has written the value.
        absent(found.map(|()| unsafe { value.assume_init() }))
    }

    pub(crate) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: as `get`.
        unsafe {
            sys::map_update(
                self.fd.as_fd(),
                std::ptr::from_ref(key).cast(),
                std::ptr::from_ref(value).cast(),
            )
        }
    }

    /// Removes the entry; whether there was one.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        // SAFETY: as `get`.
        let removed = unsafe { sys::map_delete(self.fd.as_fd(), std::ptr::from_ref(key).cast()) };
        absent(removed).map(|found| found.is_some())
    }

    /// Removes every entry whose key is not among these.
    pub(crate) fn retain(&self, kept: &[K]) -> io::Result<()>
    where
        K: PartialEq,
    {
        for key in self.keys()? {
            if !kept.contains(&key) {
                self.remove(&key)?;
            }
        }
        Ok(())
    }

    /// The keys at this time. Entries that come or go meanwhile may or may not be among them.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = MaybeUninit::<K>::uninit();
            let previous = keys.last().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: as `get`; null asks for the first key.
            let found = unsafe {
                sys::map_next_key(self.fd.as_fd(), previous.cast(), next.as_mut_ptr().cast())
            };
            match absent(found)? {
                // A key that vanished makes the kernel start over; no map here is that large.
                Some(()) if keys.len() < 1 << 20 => {
                    // SAFETY: the kernel has written the key.
                    keys.push(unsafe { next.assume_init() });
                }
                _ => return Ok(keys),
            }
        }
    }
}

/// A map of the kernel's with one value a CPU.
#[derive(Debug)]
pub(crate) struct PerCpuMap<K, V> {
    map: Map<K, V>,
    cpus: usize,
}

impl<K: Plain, V: Plain> PerCpuMap<K, V> {
    /// As [`Map::new`]. The kernel puts each CPU's value at a multiple of eight bytes.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        const { assert!(size_of::<V>().is_multiple_of(8) && align_of::<V>() <= 8) };
        Ok(Self {
            map: Map::new(fd)?,
            cpus: sys::possible_cpus()?,
        })
    }

    /// The values of all CPUs.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<Vec<V>>> {
        let mut values = Vec::<V>::with_capacity(self.cpus);
        // SAFETY: sizes were checked when self was made, and there is room for every CPU's value.
        let found = unsafe {
            sys::map_lookup(
                self.map.fd.as_fd(),
                std::ptr::from_ref(key).cast(),
                values.as_mut_ptr().cast(),
            )
        };
        absent(found.map(|()| {
            // SAFETY: the kernel has written the value of every CPU.
            unsafe { values.set_len(self.cpus) };
            values
        }))
    }

    /// Makes or replaces an entry: the same value for every CPU.
    pub(crate) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let values = vec![*value; self.cpus];
        // SAFETY: as `get`.
        unsafe {
            sys::map_update(
                self.map.fd.as_fd(),
                std::ptr::from_ref(key).cast(),
                values.as_ptr().cast(),
            )
        }
    }

    /// Removes the entry; whether there was one.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        self.map.remove(key)
    }
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
