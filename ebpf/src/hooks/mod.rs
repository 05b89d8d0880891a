//! The programs, one file a family. Each entry is a thin adapter: arguments in, one function, a constant out.

mod associations;
mod beyond;
mod class;
mod clock;
mod connect;
mod crossed;
mod delegation;
mod exec;
mod fork;
mod heirs;
mod iterate;
mod mount;
mod own_files;
mod packet;
mod packet_socket;
mod privilege;
mod receive;
mod record;
mod sockets;
mod unix;
mod unix_names;
