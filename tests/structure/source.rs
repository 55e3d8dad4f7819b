//! The source as it was parsed: who defines what, who uses whom, how long things are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Calls that are counted by name, wherever they are.
pub const COUNTED: [&str; 4] = ["notify_all", "run", "on_worker", "mutant"];

/// Methods of maps, sets and ranges.
const STANDARD: [&str; 4] = ["keys", "values", "contains", "contains_key"];

/// A function with its own lines, its signature included.
#[derive(Debug)]
pub struct Function {
    pub file: String,
    pub name: String,
    pub lines: usize,
}

/// What was found in all files below `src`.
#[derive(Default)]
pub struct Source {
    /// By file, relative to `src`.
    pub lines: BTreeMap<String, usize>,
    pub functions: Vec<Function>,
    /// By struct: file and how many fields.
    pub fields: BTreeMap<String, (String, usize)>,
    /// By type and method: the file that defines it. Methods of traits don't count: they are what others may ask of the type.
    pub methods: BTreeMap<String, BTreeMap<String, String>>,
    /// By name of `COUNTED`.
    pub calls: BTreeMap<&'static str, usize>,
    /// From file to file, by imports, paths and methods.
    pub uses: BTreeSet<(String, String)>,
}

impl Source {
    /// Reads all of `root`. Code under `#[cfg(test)]` is left out.
    pub fn read(root: &Path) -> Source {
        let mut paths = Vec::new();
        walk(root, &mut paths);
        let mut source = Source::default();
        let mut parsed = Vec::new();
        let mut tests: BTreeSet<String> = BTreeSet::new();
        for path in paths {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            source.lines.insert(name.to_owned(), text.lines().count());
            let tree = syn::parse_file(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            tests.extend(files_of_tests(name, &tree));
            parsed.push((name.to_owned(), tree));
        }
        let is_tested_with = |file: &str| tests.iter().any(|below| file.starts_with(below));
        parsed.retain(|(file, _)| !is_tested_with(file));
        source.lines.retain(|file, _| !is_tested_with(file));
        for (file, tree) in &parsed {
            let mut found = Definitions {
                file,
                of: None,
                source: &mut source,
            };
            found.visit_file(tree);
        }
        let modules: BTreeMap<Vec<String>, String> = (source.lines.keys())
            .map(|file| (module_of(file), file.clone()))
            .collect();
        // A method's name that only one type has tells the type, if it isn't one of the standard collections'.
        let mut owners: BTreeMap<&str, Option<&str>> = BTreeMap::new();
        for (of, methods) in &source.methods {
            for name in methods.keys().filter(|name| !STANDARD.contains(&&***name)) {
                let owner = owners.entry(name).or_insert(Some(of));
                if *owner != Some(of) {
                    *owner = None;
                }
            }
        }
        for (file, tree) in &parsed {
            let mut found = Uses {
                file,
                module: module_of(file),
                of: None,
                modules: &modules,
                methods: &source.methods,
                owners: &owners,
                paths: BTreeSet::new(),
                called: BTreeSet::new(),
            };
            found.visit_file(tree);
            let folders: BTreeSet<&str> = (found.paths.iter().map(String::as_str))
                .chain([file.as_str()])
                .map(Source::folder)
                .collect();
            let called = found.called.into_iter();
            let called = called.filter(|to| folders.contains(Source::folder(to)));
            for to in found.paths.iter().cloned().chain(called) {
                if to != *file {
                    source.uses.insert((file.clone(), to));
                }
            }
        }
        source
    }

    /// The folder of a file; a file at the top is a room of its own.
    pub fn folder(file: &str) -> &str {
        file.split_once('/').map_or(file, |(folder, _)| folder)
    }

    /// Groups of folders each of which needs all others of its group.
    pub fn circles_of_folders(&self) -> Vec<Vec<&str>> {
        circles((self.uses.iter()).map(|(from, to)| (Source::folder(from), Source::folder(to))))
    }

    /// From which folder to which, and by how many pairs of files.
    pub fn folder_uses(&self) -> BTreeMap<(&str, &str), Vec<(&str, &str)>> {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (from, to) in &self.uses {
            let folders = (Source::folder(from), Source::folder(to));
            if folders.0 != folders.1 {
                all.entry(folders)
                    .or_default()
                    .push((from.as_str(), to.as_str()));
            }
        }
        all
    }

    /// The largest group of files of each folder each of which needs all others of its group; none for a folder without.
    pub fn circles_of_files(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut largest: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let within = (self.uses.iter())
            .filter(|(from, to)| Source::folder(from) == Source::folder(to))
            .map(|(from, to)| (from.as_str(), to.as_str()));
        for circle in circles(within) {
            let known = largest.entry(Source::folder(circle[0])).or_default();
            if circle.len() > known.len() {
                *known = circle;
            }
        }
        largest
    }

    /// How many methods a type has, and in how many files; the largest first.
    pub fn types_by_methods(&self) -> Vec<(usize, usize, &str)> {
        let mut all: Vec<_> = (self.methods.iter())
            .map(|(of, methods)| {
                let files: BTreeSet<_> = methods.values().collect();
                (methods.len(), files.len(), of.as_str())
            })
            .collect();
        all.sort_by(|a, b| b.cmp(a));
        all
    }
}

fn circles<'a>(edges: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Vec<&'a str>> {
    let mut graph = DiGraphMap::<&str, ()>::new();
    for (from, to) in edges.filter(|(from, to)| from != to) {
        graph.add_edge(from, to, ());
    }
    let mut found = tarjan_scc(&graph);
    found.retain(|circle| circle.len() > 1);
    for circle in &mut found {
        circle.sort_unstable();
    }
    found
}

fn walk(directory: &Path, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// How the names of files begin that are modules under `#[cfg(test)]`.
fn files_of_tests(file: &str, tree: &syn::File) -> Vec<String> {
    let module = module_of(file);
    let tests = tree.items.iter().filter_map(|item| match item {
        syn::Item::Mod(item) if item.content.is_none() && is_for_tests(&item.attrs) => {
            Some(item.ident.to_string())
        }
        _ => None,
    });
    tests
        .flat_map(|name| {
            let mut path = module.clone();
            path.push(name);
            let path = path.join("/");
            [format!("{path}.rs"), format!("{path}/")]
        })
        .collect()
}

/// `engine/close.rs` is `[engine, close]`, `engine/mod.rs` is `[engine]`, `lib.rs` and `main.rs` are `[]` and `[main]`.
fn module_of(file: &str) -> Vec<String> {
    let mut parts: Vec<String> = (file.trim_end_matches(".rs").split('/'))
        .map(str::to_owned)
        .collect();
    if parts
        .last()
        .is_some_and(|last| last == "mod" || last == "lib")
    {
        parts.pop();
    }
    parts
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    (attributes.iter()).any(|a| {
        a.path().is_ident("cfg")
            && a.parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test"))
    })
}

fn name_of(of: &syn::Type) -> Option<String> {
    match of {
        syn::Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        syn::Type::Reference(reference) => name_of(&reference.elem),
        _ => None,
    }
}

fn lines_of(node: &impl Spanned) -> usize {
    let span = node.span();
    span.end().line - span.start().line + 1
}

struct Definitions<'a> {
    file: &'a str,
    of: Option<String>,
    source: &'a mut Source,
}

impl Definitions<'_> {
    fn add_function(&mut self, name: &syn::Ident, lines: usize) {
        let name = match &self.of {
            Some(of) => format!("{of}::{name}"),
            None => name.to_string(),
        };
        self.source.functions.push(Function {
            file: self.file.to_owned(),
            name,
            lines,
        });
    }

    fn count(&mut self, called: &syn::Ident) {
        if let Some(name) = COUNTED.iter().find(|name| called == *name) {
            *self.source.calls.entry(name).or_default() += 1;
        }
    }
}

impl<'ast> Visit<'ast> for Definitions<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        let found = (self.file.to_owned(), item.fields.len());
        self.source.fields.insert(item.ident.to_string(), found);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if is_for_tests(&item.attrs) {
            return;
        }
        let outer = std::mem::replace(&mut self.of, name_of(&item.self_ty));
        if let (None, Some(of)) = (&item.trait_, self.of.clone()) {
            for member in &item.items {
                if let syn::ImplItem::Fn(method) = member {
                    let name = method.sig.ident.to_string();
                    let methods = self.source.methods.entry(of.clone()).or_default();
                    methods.insert(name, self.file.to_owned());
                }
            }
        }
        visit::visit_item_impl(self, item);
        self.of = outer;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add_function(
            &item.sig.ident,
            lines_of(&item.sig).max(1) + lines_of(&item.block) - 1,
        );
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if is_for_tests(&item.attrs) {
            return;
        }
        self.add_function(
            &item.sig.ident,
            lines_of(&item.sig).max(1) + lines_of(&item.block) - 1,
        );
        visit::visit_item_fn(self, item);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        // `run` of the workers, not of a command.
        let is_worker = call.method != "run"
            || matches!(&*call.receiver, syn::Expr::Field(field)
                if matches!(&field.member, syn::Member::Named(name) if name == "pool"));
        if is_worker {
            self.count(&call.method);
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let syn::Expr::Path(path) = &*call.func
            && let Some(last) = path.path.segments.last()
            && last.ident != "run"
        {
            self.count(&last.ident);
        }
        visit::visit_expr_call(self, call);
    }
}

struct Uses<'a> {
    file: &'a str,
    module: Vec<String>,
    of: Option<String>,
    modules: &'a BTreeMap<Vec<String>, String>,
    methods: &'a BTreeMap<String, BTreeMap<String, String>>,
    owners: &'a BTreeMap<&'a str, Option<&'a str>>,
    /// By imports and paths.
    paths: BTreeSet<String>,
    /// By methods. A name tells the type only to who uses that type's folder for something else, too.
    called: BTreeSet<String>,
}

impl Uses<'_> {
    /// Follows a path that begins with `crate`, `super` or `self` to the innermost module that it names.
    fn add_path(&mut self, path: &[String]) {
        let mut at = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("commitfs") if self.file == "main.rs" => Vec::new(),
            Some("super") => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            Some("self") => self.module.clone(),
            _ => return,
        };
        for part in &path[1..] {
            if part == "super" {
                at.pop();
                continue;
            }
            at.push(part.clone());
            if !self.modules.contains_key(&at) {
                at.pop();
                break;
            }
        }
        self.paths.extend(self.modules.get(&at).cloned());
    }

    fn add_tree(&mut self, before: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_tree(before, &path.tree);
                before.pop();
            }
            syn::UseTree::Name(name) => {
                before.push(name.ident.to_string());
                self.add_path(before);
                before.pop();
            }
            syn::UseTree::Rename(name) => {
                before.push(name.ident.to_string());
                self.add_path(before);
                before.pop();
            }
            syn::UseTree::Glob(_) => self.add_path(before),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(before, tree);
                }
            }
        }
    }

    fn add_method(&mut self, of: Option<&str>, name: &str) {
        let Some(of) = of.or_else(|| self.owners.get(name).copied().flatten()) else {
            return;
        };
        let file = self.methods.get(of).and_then(|methods| methods.get(name));
        self.called.extend(file.cloned());
    }
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    // What a parent offers of its children under its own name makes it depend on none of them.
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if matches!(item.vis, syn::Visibility::Inherited) && !is_for_tests(&item.attrs) {
            self.add_tree(&mut Vec::new(), &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = (path.segments.iter())
            .map(|segment| segment.ident.to_string())
            .collect();
        if parts.len() > 1 {
            self.add_path(&parts);
        }
        if let [of, name] = &parts[..] {
            let of = if of == "Self" {
                self.of.clone()
            } else {
                Some(of.clone())
            };
            if of.as_ref().is_some_and(|of| self.methods.contains_key(of)) {
                self.add_method(of.as_deref(), name);
            }
        }
        visit::visit_path(self, path);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let outer = std::mem::replace(&mut self.of, name_of(&item.self_ty));
        if !is_for_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
        self.of = outer;
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let is_own = matches!(&*call.receiver, syn::Expr::Path(path) if path.path.is_ident("self"));
        let of = if is_own { self.of.clone() } else { None };
        self.add_method(of.as_deref(), &call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }
}
