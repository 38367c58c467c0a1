//! Where a planned buffer lies on a device.

/// A part of a buffer, or all of one.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub buffer: wgpu::Buffer,
    /// Its first byte.
    pub offset: u64,
    pub bytes: u64,
}

impl Place {
    /// All of a buffer.
    pub fn whole(buffer: wgpu::Buffer) -> Place {
        Place { offset: 0, bytes: buffer.size(), buffer }
    }

    /// It as a binding.
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        let size = std::num::NonZeroU64::new(self.bytes);
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &self.buffer, offset: self.offset, size })
    }

    /// Copies it to another place, as far as both reach.
    pub fn copy_to(&self, encoder: &mut wgpu::CommandEncoder, to: &Place) {
        encoder.copy_buffer_to_buffer(&self.buffer, self.offset, &to.buffer, to.offset, self.bytes.min(to.bytes));
    }
}
