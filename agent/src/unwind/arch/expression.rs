//! Expressions that rules can stand for. Source: DWARF 5, section 2.5.

use gimli::{Encoding, EndianSlice, Format, LittleEndian, Operation, Register};

/// `register + offset`, or what lies in memory there plus an addend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::unwind) struct Address {
    pub register: Register,
    pub offset: i64,
    pub read: Option<i64>,
}

impl Address {
    /// Reads an expression that has this form.
    pub fn parse(expression: &[u8]) -> Option<Self> {
        const ENCODING: Encoding = Encoding {
            address_size: 8,
            format: Format::Dwarf32,
            version: 4,
        };
        let mut input = EndianSlice::new(expression, LittleEndian);
        let mut constant = None;
        let mut address = match Operation::parse(&mut input, ENCODING).ok()? {
            Operation::RegisterOffset {
                register, offset, ..
            } => Self {
                register,
                offset,
                read: None,
            },
            _ => return None,
        };
        while !input.is_empty() {
            match (
                Operation::parse(&mut input, ENCODING).ok()?,
                constant.take(),
            ) {
                (
                    Operation::Deref {
                        size: 8,
                        space: false,
                        ..
                    },
                    None,
                ) if address.read.is_none() => {
                    address.read = Some(0);
                }
                (Operation::PlusConstant { value }, None) => address.add(value as i64)?,
                (Operation::UnsignedConstant { value }, None) => constant = Some(value as i64),
                (Operation::SignedConstant { value }, None) => constant = Some(value),
                (Operation::Plus, Some(value)) => address.add(value)?,
                (Operation::Minus, Some(value)) => address.add(value.checked_neg()?)?,
                _ => return None,
            }
        }
        constant.is_none().then_some(address)
    }

    fn add(&mut self, value: i64) -> Option<()> {
        let sum = self.read.as_mut().unwrap_or(&mut self.offset);
        *sum = sum.checked_add(value)?;
        Some(())
    }
}
