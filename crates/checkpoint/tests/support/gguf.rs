//! A writer of GGUF that lets files be wrong.

/// A file under construction.
pub struct Gguf {
    pub version: u32,
    /// A number of tensors that is not true.
    pub tensors_said: Option<u64>,
    /// A number of values that is not true.
    pub values_said: Option<u64>,
    pub tensors: u64,
    pub values: u64,
    pub metadata: Vec<u8>,
    pub list: Vec<u8>,
    pub data: Vec<u8>,
}

impl Default for Gguf {
    fn default() -> Self {
        Gguf {
            version: 3,
            tensors_said: None,
            values_said: None,
            tensors: 0,
            values: 0,
            metadata: Vec::new(),
            list: Vec::new(),
            data: Vec::new(),
        }
    }
}

/// A text with its length before it.
pub fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

/// A number of type 4.
pub fn number(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

impl Gguf {
    /// A value of metadata, by the number of its type.
    pub fn value(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.values += 1;
        self.metadata.extend([&text(key)[..], &kind.to_le_bytes(), bytes].concat());
        self
    }

    /// A tensor, extents the fastest first, after all others.
    pub fn tensor(self, name: &str, extents: &[u64], kind: u32, bytes: &[u8]) -> Self {
        let offset = self.data.len() as u64;
        let mut file = self.tensor_at(name, extents, kind, offset);
        file.data.extend(bytes);
        file.data.resize(file.data.len().next_multiple_of(32), 0);
        file
    }

    /// A tensor without bytes of its own.
    pub fn tensor_at(mut self, name: &str, extents: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors += 1;
        self.list.extend(text(name));
        self.list.extend((extents.len() as u32).to_le_bytes());
        self.list.extend(extents.iter().flat_map(|n| n.to_le_bytes()));
        self.list.extend(kind.to_le_bytes());
        self.list.extend(offset.to_le_bytes());
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        let counts = [self.tensors_said.unwrap_or(self.tensors), self.values_said.unwrap_or(self.values)];
        let mut bytes = [&b"GGUF"[..], &self.version.to_le_bytes(), &counts.map(u64::to_le_bytes).concat()].concat();
        bytes.extend([self.metadata, self.list].concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(self.data);
        bytes
    }
}
