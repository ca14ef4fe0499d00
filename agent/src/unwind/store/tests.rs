use hotspan_abi::unwind::{MAX_WIDE_RULES, Rule};

use super::*;
use crate::unwind::{Rows, TableRule, table::build};

const NOW: u64 = IDLE_NS;
const LATER: u64 = NOW + RETIRED_NS + 1;

fn mapping(start: u64) -> Mapping {
    Mapping {
        start,
        end: start + 0x1000,
        ..Mapping::default()
    }
}

/// A table of about so many words.
fn table(words: usize, wide: Vec<WideRule>) -> Table {
    let count = wide.len() as u64;
    let rows = (0..words as u64)
        .map(|i| match (i % 2, count) {
            (0, 0) => (i * 2, TableRule::Short(Rule::PLT)),
            (0, count) => (i * 2, TableRule::Wide((i / 2 % count) as u32)),
            _ => (i * 2, TableRule::NONE),
        })
        .collect();
    build(&Rows { rows, wide }, 0..words as u64 * 2).unwrap()
}

fn wide(offsets: std::ops::Range<i32>) -> Vec<WideRule> {
    let rule = |cfa_offset| WideRule {
        cfa_offset,
        ..WideRule::default()
    };
    offsets.map(rule).collect()
}

/// A store of one segment.
fn store() -> Store {
    let mut store = Store::new(1);
    store.grow();
    store
}

/// Places a table of a part of the segment under each id.
fn place(store: &mut Store, part: usize, ids: &[u32], now: u64) -> bool {
    let table = table(SEGMENT_WORDS / part, Vec::new());
    ids.iter()
        .all(|&id| store.place(file(id), vec![table.clone()], now))
}

fn file(id: u32) -> Owner {
    Owner::Binary(BinaryId(id))
}

fn ids(ids: &[u32]) -> Vec<Owner> {
    ids.iter().map(|&id| file(id)).collect()
}

#[test]
fn page_index_counts_from_the_start_of_the_space() {
    let mut store = store();
    store.set_process(7, &[mapping(0)], false, NOW);
    store.take_updates();
    let tables = vec![table(10, Vec::new()), table(2, Vec::new())];
    store.place(file(0), tables, NOW);
    let updates = store.take_updates();
    let [Update::Words(8, first), Update::Words(20, second)] = &updates[..] else {
        panic!("{updates:?}")
    };
    assert_eq!((&first[..2], &second[..2]), (&[10, 20][..], &[22, 24][..]));
    let placed = store.tables_of(file(0)).unwrap();
    assert_eq!((placed[0].pages, placed[1].pages), (8, 20));
}

#[test]
fn wide_rules_are_shared_until_no_table_refers_to_them() {
    let mut store = store();
    let added = |store: &mut Store| {
        let updates = store.take_updates();
        let wide = updates.into_iter().filter_map(|update| match update {
            Update::Wide(index, rule) => Some((index, rule.cfa_offset)),
            _ => None,
        });
        wide.collect::<Vec<_>>()
    };
    store.place(file(0), vec![table(4, wide(3..5))], NOW);
    assert_eq!(added(&mut store), [(0, 3), (1, 4)]);
    store.place(file(1), vec![table(4, wide(4..5))], NOW);
    assert_eq!(added(&mut store), []);
    let binary = store.owners.remove(&file(0)).unwrap();
    store.retire(binary, NOW);
    // A program may still read the table.
    store.place(file(2), vec![table(4, wide(5..6))], NOW + RETIRED_NS);
    assert_eq!(added(&mut store), [(2, 5)]);
    store.place(file(3), vec![table(4, wide(6..7))], LATER);
    store.place(file(4), vec![table(4, wide(4..5))], LATER);
    assert_eq!(added(&mut store), [(0, 6)]);
}

#[test]
fn rules_that_are_too_many_are_counted() {
    let mut store = store();
    let most = MAX_WIDE_RULES as i32;
    store.place(file(0), vec![table(8, wide(0..4))], NOW);
    assert_eq!(store.left_out, 0);
    for id in 0..most / 512 {
        let rules = wide(4 + 512 * id..4 + 512 * (id + 1));
        store.place(file(1 + id as u32), vec![table(1024, rules)], NOW);
    }
    assert_eq!(store.left_out, 4);
    let mappings: Vec<_> = (0..MAX_MAPPINGS as u64 + 7)
        .map(|at| mapping(at << 12))
        .collect();
    store.set_process(7, &mappings, false, NOW);
    assert_eq!(store.left_out, 4 + 7);
}

#[test]
fn space_of_ended_processes_is_used_again_after_a_while() {
    let mut store = store();
    for round in 0..20_000_u64 {
        let now = round * RETIRED_NS / 100;
        let pid = round as u32;
        assert!(store.set_process(pid, &[mapping(0), mapping(0x4000)], false, now));
        store.forget_process(pid, now);
    }
    store.release_retired(u64::MAX);
    assert!(store.free.holds(&[SEGMENT_WORDS]));
    assert!(store.processes.is_empty());
}

#[test]
fn space_of_evicted_tables_is_used_again_after_a_while() {
    let mut store = store();
    assert!(place(&mut store, 2, &[0], NOW));
    assert!(
        !place(&mut store, 2, &[1], NOW),
        "the page index has no room"
    );
    let words = table(SEGMENT_WORDS / 2, Vec::new()).words.len();
    assert_eq!(store.evict(&[words], |_| false, NOW), ids(&[0]));
    assert!(store.tables_of(file(0)).is_none());
    assert!(store.will_have_room(&[words]));
    assert!(!place(&mut store, 2, &[1], NOW + RETIRED_NS));
    assert!(place(&mut store, 2, &[1], LATER));
}

/// Fills the segment with seven tables, and returns how many words each has.
fn fill(store: &mut Store) -> usize {
    assert!(place(store, 8, &[0, 1, 2, 3, 4, 5, 6], NOW));
    assert!(!place(store, 8, &[7], NOW));
    store.table_words / 7
}

#[test]
fn least_recently_used_tables_go_first() {
    let mut store = store();
    let words = fill(&mut store);
    for (id, after) in [(0, 7), (1, 2), (2, 4), (3, 3), (4, 1), (5, 5), (6, 6)] {
        store.touch(file(id), NOW + after);
    }
    let mut now = NOW + 8;
    for (new, evicted) in [
        (7, 4),
        (8, 1),
        (9, 3),
        (10, 2),
        (11, 5),
        (12, 6),
        (13, 0),
        (14, 7),
    ] {
        assert_eq!(store.evict(&[words], |_| false, now), ids(&[evicted]));
        // Enough is enough.
        assert_eq!(store.evict(&[words], |_| false, now), []);
        now += RETIRED_NS + 1;
        assert!(place(&mut store, 8, &[new], now));
    }
}

#[test]
fn mapped_tables_go_last_and_only_when_no_sample_met_them() {
    let mut store = store();
    let words = fill(&mut store);
    let is_mapped = |id| id != file(5);
    let now = NOW + 2 * IDLE_NS;
    store.touch(file(5), now);
    store.touch(file(0), now - IDLE_NS + 1);
    // All but the first may go, one that is mapped by nobody among them.
    let most = SEGMENT_WORDS - SEGMENT_WORDS / MAPPINGS_SHARE - words;
    assert!(store.could_hold(most, is_mapped, now));
    assert!(!store.could_hold(most + 1, is_mapped, now));
    assert!(store.could_hold(most + 1, is_mapped, now + 1));
    assert_eq!(store.evict(&[most + 1], is_mapped, now), []);
    assert_eq!(store.evict(&[words], is_mapped, now), ids(&[5]));
    let now = now + RETIRED_NS + 1;
    assert!(place(&mut store, 8, &[7], now));
    assert_eq!(store.evict(&[words], is_mapped, now), ids(&[1]));
}

#[test]
fn some_room_is_left_for_mappings() {
    let mut store = store();
    let room = SEGMENT_WORDS - SEGMENT_WORDS / MAPPINGS_SHARE;
    assert!(store.may_hold_tables(room) && !store.may_hold_tables(room + 1));
    assert!(place(&mut store, 2, &[0], NOW));
    let left = room - store.table_words;
    assert!(store.may_hold_tables(left) && !store.may_hold_tables(left + 1));
}

#[test]
fn store_grows_up_to_its_bound() {
    let mut store = Store::new(3 << 20);
    assert!(!store.has_room(&[1], NOW));
    while store.may_grow() {
        store.grow();
    }
    assert_eq!(store.segments(), 3);
    // No table crosses the end of a segment.
    assert!(store.has_room(&[SEGMENT_WORDS; 3], NOW));
    assert!(!store.has_room(&[SEGMENT_WORDS + 1], NOW));
    let mut store = Store::new(3 << 20);
    store.grow();
    store.stop_growing();
    assert!(!store.may_grow());
    assert_eq!(Store::new(usize::MAX).max_segments, MAX_SEGMENTS);
}
