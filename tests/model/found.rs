//! More programs that are kept: what children, threads, links, exchanges and databases came to.

use super::*;

/// A transaction that writes 20 bytes of a committed file.
const WRITING: [Op; 2] = [Open(0, 0, Mode::Rewrite, false), Write(0, 20)];

#[test]
fn a_child_that_is_older_than_the_open_reads_the_version() {
    holds(&[&[Fork(0)], &WRITING[..]].concat());
    holds(&[&[Fork(0)], &WRITING[..], &[Save(3, 0, 9), Close(0)]].concat());
}

#[test]
fn who_is_started_after_the_open_by_a_helper_of_the_opener_reads_what_is_staged() {
    holds(&[&[Fork(0)], &WRITING[..], &[Fork(3), Write(0, 9)]].concat());
}

#[test]
fn a_parent_and_a_sibling_read_the_version_while_a_child_writes() {
    let writes = [Open(3, 0, Mode::Rewrite, false), Write(0, 20)];
    holds(&[&[Fork(0), Fork(0)], &writes[..]].concat());
}

#[test]
fn another_thread_reads_the_version_and_a_new_name_as_it_is_written() {
    holds(&[&[Thread(0)], &WRITING[..], &[Save(3, 0, 9), Close(0)]].concat());
    let new = [Thread(0), Open(0, 1, Mode::Rewrite, false), Write(0, 20)];
    holds(&new);
    holds_with(
        Theme::Documents,
        &[Thread(0), Open(0, 3, Mode::Rewrite, false), Write(0, 20)],
    );
}

/// Makes another file to change names with, and then what is given.
fn with_another(program: &[Op]) {
    holds(&[&[Save(0, 1, 9)], program].concat());
}

#[test]
fn an_exchange_takes_those_along_who_write() {
    let ends = [Write(0, 9), Close(0)];
    for who in [0, 1] {
        let exchange = [Exchange(who, 0, 1)];
        with_another(&[&WRITING, &exchange[..], &ends].concat());
        with_another(&[&WRITING, &exchange[..], &[Close(0)]].concat());
        let edits = [Open(0, 0, Mode::Edit, false), Pwrite(0, 2, 4)];
        with_another(&[&edits, &exchange[..], &ends].concat());
        let adds = [Open(0, 0, Mode::Append, false), Write(0, 4)];
        with_another(&[&adds, &exchange[..], &[Write(0, 4), Close(0)]].concat());
    }
}

#[test]
fn an_exchange_of_two_names_that_are_written_loses_neither() {
    let both = [Open(1, 1, Mode::Rewrite, false), Write(1, 8)];
    for who in [0, 1, 2] {
        let ends = [Exchange(who, 0, 1), Write(0, 9), Close(0), Close(0)];
        with_another(&[&WRITING, &both[..], &ends].concat());
    }
}

#[test]
fn a_link_to_what_is_written_has_what_its_close_commits() {
    let writes_new = [Open(0, 2, Mode::Rewrite, false), Write(0, 20)];
    for (from, writes) in [(0, &WRITING), (2, &writes_new)] {
        let link = [Link(0, from, 1)];
        holds(&[writes, &link[..], &[Write(0, 9), Close(0)]].concat());
        holds(&[writes, &link[..], &[Write(0, 9), Kill(0, true)]].concat());
        holds(
            &[
                writes,
                &link[..],
                &[Write(0, 9), RenameNew(1, 1, 4), Close(0)],
            ]
            .concat(),
        );
    }
}

#[test]
fn the_close_of_a_mapped_editor_puts_lines_of_others_behind_what_it_has_written() {
    let edits = [Open(0, 0, Mode::Edit, false), Write(0, 14), Append(1, 0)];
    holds(&[&edits[..], &[Map(0), Close(0), Strike(None)]].concat());
    holds(&[&edits[..], &[Map(0), Close(0), Unmap(0)]].concat());
}

#[test]
fn a_new_table_shows_its_first_line() {
    let table = [Open(0, 1, Mode::Rewrite, false), Write(0, 43)];
    holds_with(Theme::Streams, &[&table[..], &[Kill(0, true)]].concat());
}

#[test]
fn a_table_that_is_written_in_blocks_is_whole_or_not_there() {
    let table = [
        Open(0, 1, Mode::Rewrite, false),
        Write(0, 4200),
        Write(0, 43),
    ];
    holds_with(Theme::Streams, &[&table[..], &[Kill(0, true)]].concat());
    holds_with(Theme::Streams, &[&table[..], &[Close(0)]].concat());
}

#[test]
fn who_shares_a_new_file_sees_the_database_that_it_becomes() {
    let shared = [
        Open(0, 1, Mode::Share, false),
        Open(1, 1, Mode::Share, false),
    ];
    for first in [4, 5] {
        let writes = [Write(0, first), Write(1, 8), Kill(0, true)];
        holds_with(Theme::Databases, &[&shared[..], &writes].concat());
    }
}

#[test]
fn who_shares_the_name_of_one_that_was_killed_finds_the_error_still() {
    let killed = [Open(0, 3, Mode::Append, false), Kill(0, false)];
    let shares = [Open(0, 3, Mode::Share, false)];
    holds_with(Theme::Databases, &[&killed[..], &shares].concat());
}

#[test]
fn what_was_written_over_a_synced_edit_is_cut_off_before_the_lines_of_others() {
    let synced = [Open(0, 0, Mode::Edit, false), Pwrite(0, 2, 4), Fsync(0)];
    let ends = [Pwrite(0, 0, 38), Append(1, 0), Strike(None)];
    holds(&[synced, ends].concat());
}

#[test]
fn a_new_file_that_becomes_a_text_is_staged() {
    let text = [Open(0, 1, Mode::Share, false), Write(0, 5)];
    holds_with(Theme::Databases, &[&text[..], &[Close(0)]].concat());
    holds_with(Theme::Databases, &[&text[..], &[Kill(0, true)]].concat());
}

#[test]
fn an_exchange_that_a_guard_refuses_shows_nobody_a_new_name() {
    let refused = [Open(0, 1, Mode::Rewrite, false), Exchange(0, 0, 1)];
    holds_with(Theme::Documents, &refused);
}

#[test]
fn an_exchange_with_half_a_new_document_shows_nobody_that() {
    let half = [
        Open(0, 3, Mode::Rewrite, false),
        Write(0, 3),
        Save(0, 1, 0),
        Exchange(0, 1, 3),
    ];
    holds_with(Theme::Documents, &half);
    let both = [Open(0, 1, Mode::Rewrite, false), Write(0, 0)];
    holds_with(
        Theme::Documents,
        &[&both[..], &half[..2], &[Exchange(0, 1, 3)]].concat(),
    );
}

#[test]
fn a_thread_that_writes_what_another_has_opened_to_share_sees_it_once_it_is_committed() {
    let opened = [Open(0, 0, Mode::Share, false), Thread(3)];
    for n in [4, 5] {
        let ends = [Write(n, 2), Close(0)];
        holds_with(Theme::Databases, &[&opened[..], &ends].concat());
    }
    let by_the_thread = [Thread(0), Open(3, 0, Mode::Share, false)];
    for n in [4, 5] {
        let ends = [Write(n, 2), Close(0)];
        holds_with(Theme::Databases, &[&by_the_thread[..], &ends].concat());
    }
    let both = [&opened[..], &[Open(3, 0, Mode::Share, false)]].concat();
    for n in [0, 1, 2, 3] {
        let ends = [Write(n, 2), Close(0), Close(0)];
        holds_with(Theme::Databases, &[&both[..], &ends].concat());
    }
}

#[test]
fn an_exchange_judges_what_its_caller_has_written_of_a_file_that_is_there() {
    let written = |len| {
        [
            Save(1, 3, 1),
            Open(0, 3, Mode::RewriteAndRead, false),
            Write(0, len),
        ]
    };
    let ends = [Write(0, 9), Close(0)];
    // Nothing, then a whole document, and half of one; to a guarded name, and to another.
    for (first, len) in [(0, 48), (1, 48), (1, 3)] {
        let mut written = written(len);
        if first == 0 {
            written[0] = TruncatePath(0, 3, 0);
        }
        let made = [Open(2, 3, Mode::Exclusive, false), Close(0), Save(2, 1, 1)];
        for to in [0, 1] {
            let exchange = [Exchange(0, 3, to)];
            let all = [&made[..], &written, &exchange, &ends].concat();
            holds_with(Theme::Documents, &all);
        }
    }
}

#[test]
fn an_unfinished_line_is_part_of_the_length_that_its_writer_is_told_whatever_else_it_opens() {
    let line = [Open(0, 0, Mode::Append, false), Write(0, 3)];
    let edits = [Open(0, 0, Mode::Edit, false)];
    holds_with(Theme::Databases, &[&line[..], &edits].concat());
    holds_with(Theme::Databases, &[&edits, &line[..]].concat());
}

#[test]
fn a_child_of_another_thread_that_has_inherited_a_file_sees_what_is_staged() {
    holds(&[
        Thread(4),
        Exit(0),
        Exit(4),
        Open(1, 0, Mode::Rewrite, false),
        Fork(3),
    ]);
}

#[test]
fn a_new_text_that_its_program_appends_to_shows_that_line() {
    let text = [Open(1, 1, Mode::Rewrite, false), Append(1, 1)];
    holds_with(Theme::Streams, &text);
    let failed = [Open(0, 1, Mode::Rewrite, false), FailingWrite(0)];
    holds_with(Theme::Streams, &[&failed[..], &[Write(0, 1)]].concat());
    let beside = [
        Append(0, 2),
        Open(2, 3, Mode::RewriteAndRead, false),
        Overtaken(1, 3, 3),
    ];
    holds_with(Theme::Streams, &beside);
}

#[test]
fn a_file_that_killed_programs_have_shared_keeps_its_number() {
    let shared = [
        Open(1, 0, Mode::Edit, false),
        Open(3, 0, Mode::Edit, false),
        Write(6, 45),
    ];
    let ends = [
        Kill(4, true),
        Kill(3, true),
        Open(2, 0, Mode::Edit, false),
        Link(0, 3, 3),
        Unlock(6),
        Exit(4),
    ];
    holds_with(Theme::Databases, &[&shared[..], &ends].concat());
}

#[test]
fn a_text_is_not_rejected_for_the_death_of_who_has_only_shared_its_file() {
    let shared = [
        Open(4, 0, Mode::Edit, false),
        Open(0, 0, Mode::Share, false),
    ];
    let ends = [Kill(0, false), Write(0, 17), Exit(0)];
    holds_with(Theme::Databases, &[shared.to_vec(), ends.to_vec()].concat());
}
