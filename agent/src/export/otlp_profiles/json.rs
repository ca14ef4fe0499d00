//! OTLP/JSON: protobuf's JSON mapping with lower camel case names, but ids in hexadecimal and
//! enums as numbers.
//!
//! The serde code of opentelemetry-proto 0.33 departs from those rules for profiles: 64-bit
//! integers come out as JSON numbers and byte strings as arrays of numbers. Both are visible
//! to serde_json's formatter, as every index is an `i32` and every count a `u32`, so this
//! formatter mends them while it writes, and no second description of the messages is needed.

use std::io::{self, Write};

use hotspan_proto::otlp::profiles_service::ExportProfilesServiceRequest;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// Fields of type `bytes` that serde writes as arrays. `profile_id` is a string already. The
/// original payload, which would have to be base64, is never set.
const BYTE_FIELDS: [&str; 3] = ["traceId", "spanId", "originalPayload"];

pub(super) fn write(request: &ExportProfilesServiceRequest, out: &mut dyn Write) -> io::Result<()> {
    request.serialize(&mut Serializer::with_formatter(out, OtlpJson::default()))?;
    Ok(())
}

#[derive(Default)]
struct OtlpJson {
    is_in_key: bool,
    /// The value to come, or being written, is a byte string.
    is_bytes: bool,
}

impl Formatter for OtlpJson {
    fn write_u64<W: ?Sized + Write>(&mut self, out: &mut W, value: u64) -> io::Result<()> {
        write!(out, "\"{value}\"")
    }

    fn write_i64<W: ?Sized + Write>(&mut self, out: &mut W, value: i64) -> io::Result<()> {
        write!(out, "\"{value}\"")
    }

    fn write_u8<W: ?Sized + Write>(&mut self, out: &mut W, value: u8) -> io::Result<()> {
        write!(out, "{value:02x}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.is_in_key = true;
        CompactFormatter.begin_object_key(out, first)
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if self.is_in_key {
            self.is_bytes = BYTE_FIELDS.contains(&fragment);
        }
        CompactFormatter.write_string_fragment(out, fragment)
    }

    fn end_object_key<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_in_key = false;
        Ok(())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(if self.is_bytes { b"\"" } else { b"[" })
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if self.is_bytes {
            return Ok(());
        }
        CompactFormatter.begin_array_value(out, first)
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        let is_bytes = std::mem::take(&mut self.is_bytes);
        out.write_all(if is_bytes { b"\"" } else { b"]" })
    }
}
