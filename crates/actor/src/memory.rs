//! The border between a guest's numbers and the host's types: every pointer and length is checked here, once.

use crate::abi::Refused;
use crate::limits::TEXT_BYTES_MAX;
use bytemuck::{AnyBitPattern, NoUninit};
use std::ops::Range;

/// A guest's linear memory during a host call.
pub(crate) struct GuestMemory<'a> {
    bytes: &'a mut [u8],
}

impl<'a> GuestMemory<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> GuestMemory<'a> {
        GuestMemory { bytes }
    }

    /// Bytes that a guest names, if they all lie in its memory.
    pub(crate) fn range(&self, pointer: u32, len_bytes: usize) -> Result<Range<usize>, Refused> {
        let start = pointer as usize;
        let end = start.checked_add(len_bytes).filter(|&end| end <= self.bytes.len()).ok_or(Refused::OutOfBounds)?;
        Ok(start..end)
    }

    /// Elements of `T` that a guest names, if they lie in its memory and the pointer is aligned.
    pub(crate) fn range_of<T>(&self, pointer: u32, len: u32) -> Result<Range<usize>, Refused> {
        let len_bytes = (len as usize).checked_mul(size_of::<T>()).ok_or(Refused::OutOfBounds)?;
        let range = self.range(pointer, len_bytes)?;
        if (pointer as usize).is_multiple_of(align_of::<T>()) { Ok(range) } else { Err(Refused::BadArgument) }
    }

    pub(crate) fn bytes(&self, pointer: u32, len: u32) -> Result<&[u8], Refused> {
        Ok(&self.bytes[self.range(pointer, len as usize)?])
    }

    pub(crate) fn bytes_mut(&mut self, pointer: u32, len: u32) -> Result<&mut [u8], Refused> {
        let range = self.range(pointer, len as usize)?;
        Ok(&mut self.bytes[range])
    }

    /// UTF-8 text of at most [`TEXT_BYTES_MAX`].
    pub(crate) fn text(&self, pointer: u32, len: u32) -> Result<&str, Refused> {
        let bytes = self.bytes(pointer, len)?;
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(Refused::BadArgument);
        }
        std::str::from_utf8(bytes).map_err(|_| Refused::BadText)
    }

    /// Elements where they lie: regions begin at pages, so alignment of the offset is alignment of the address.
    pub(crate) fn slice<T: AnyBitPattern>(&self, pointer: u32, len: u32) -> Result<&[T], Refused> {
        let range = self.range_of::<T>(pointer, len)?;
        bytemuck::try_cast_slice(&self.bytes[range]).map_err(|_| Refused::BadArgument)
    }

    /// One structure.
    pub(crate) fn read<T: AnyBitPattern>(&self, pointer: u32) -> Result<T, Refused> {
        Ok(self.slice::<T>(pointer, 1)?[0])
    }

    /// Writes one structure.
    pub(crate) fn write<T: NoUninit>(&mut self, pointer: u32, value: T) -> Result<(), Refused> {
        let range = self.range_of::<T>(pointer, 1)?;
        self.bytes[range].copy_from_slice(bytemuck::bytes_of(&value));
        Ok(())
    }

    /// Fills a guest's buffer with as many whole elements of an answer as fit, and answers how many there are in all.
    pub(crate) fn answer<T: NoUninit>(&mut self, pointer: u32, capacity: u32, answer: &[T]) -> Result<i32, Refused> {
        let range = self.range_of::<T>(pointer, capacity)?;
        let len = i32::try_from(answer.len()).map_err(|_| Refused::Limit)?;
        let fits = answer.len().min(capacity as usize);
        let source: &[u8] = bytemuck::cast_slice(&answer[..fits]);
        self.bytes[range.start..][..source.len()].copy_from_slice(source);
        Ok(len)
    }

    /// Two matrices to read and one to write, which is not empty and overlaps neither.
    #[allow(clippy::type_complexity)] // three slices
    pub(crate) fn matrices(&mut self, a: Range<usize>, b: Range<usize>, c: Range<usize>) -> Result<(&[f32], &[f32], &mut [f32]), Refused> {
        let apart = |r: &Range<usize>| r.end <= c.start || r.start >= c.end || r.is_empty();
        if !apart(&a) || !apart(&b) {
            return Err(Refused::BadArgument);
        }
        let (before, rest) = self.bytes.split_at_mut(c.start);
        let (middle, after) = rest.split_at_mut(c.len());
        let (before, after) = (&*before, &*after);
        let floats = |r: Range<usize>| match r {
            r if r.is_empty() => Ok(&[][..]),
            r if r.end <= c.start => bytemuck::try_cast_slice(&before[r]),
            r => bytemuck::try_cast_slice(&after[r.start - c.end..r.end - c.end]),
        };
        let unaligned = |_| Refused::BadArgument;
        let middle = bytemuck::try_cast_slice_mut(middle).map_err(unaligned)?;
        Ok((floats(a).map_err(unaligned)?, floats(b).map_err(unaligned)?, middle))
    }
}

#[cfg(target_endian = "big")]
compile_error!("linear memory is little-endian and read where it lies");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_leave_or_wrap() {
        #[repr(align(16))]
        struct Aligned([u8; 64]);
        let mut bytes = Aligned([0; 64]);
        let mut memory = GuestMemory::new(&mut bytes.0);
        let cases = [
            (0, 16, None),
            (60, 1, None),
            (64, 0, None),
            (0, 17, Some(Refused::OutOfBounds)),
            (61, 1, Some(Refused::OutOfBounds)),
            (65, 0, Some(Refused::OutOfBounds)),
            (u32::MAX, u32::MAX, Some(Refused::OutOfBounds)),
            (2, 1, Some(Refused::BadArgument)),
        ];
        for (pointer, len, expected) in cases {
            assert_eq!(memory.range_of::<u32>(pointer, len).err(), expected, "{pointer} {len}");
        }
        assert_eq!(memory.answer(60, 1, &[1u32, 2, 3]), Ok(3));
        assert_eq!(memory.read::<u32>(60), Ok(1));
        assert_eq!(memory.answer::<u32>(64, 0, &[9]), Ok(1));
    }

    #[test]
    fn matrices_may_share_sources_but_not_the_product() {
        let mut bytes = vec![0u8; 4096];
        let offset = bytes.as_ptr().align_offset(16);
        let mut memory = GuestMemory::new(&mut bytes[offset..][..256]);
        assert!(memory.matrices(0..64, 0..64, 64..128).is_ok());
        assert!(memory.matrices(128..192, 0..64, 64..128).is_ok());
        assert!(memory.matrices(0..65, 0..64, 64..128).is_err());
        assert!(memory.matrices(0..64, 127..128, 64..128).is_err());
        assert!(memory.matrices(0..0, 100..100, 64..128).is_ok());
    }
}
