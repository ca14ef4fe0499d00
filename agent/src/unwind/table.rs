//! Stand-in.
use hotspan_abi::unwind::WideRule;
/// T.
pub struct Table {
    pub start: u64,
    pub page_count: u32,
    pub words: Vec<u32>,
    pub wide: Vec<WideRule>,
}
