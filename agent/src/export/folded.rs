//! Stub.
use super::Options;
use crate::model::Profile;
use std::io::{self, Write};
/// Writes the profile.
pub fn write(_p: &Profile, _o: &Options, _w: &mut dyn Write) -> io::Result<()> {
    Ok(())
}
