// Package kerneltest models how the kernels of Linux, macOS, FreeBSD and Windows
// answer the multicast socket options of RFC 3678, misbehaviour included, so that
// code written for one system can be tested on any machine.
//
// A [Kernel] is one host: its interfaces, its limits and its sockets. A [Socket]
// takes the same bytes that the system's own setsockopt, getsockopt and (Windows)
// WSAIoctl take, decodes them by that system's layout, answers with that system's
// error numbers, and says afterwards what the kernel believes
// ([Socket.Memberships]) and which datagrams it would hand over
// ([Socket.Delivers]). What a program must never ask of a system, because the
// answer harms it or others, is collected in [Kernel.Harms].
//
//	k := kerneltest.Linux()
//	s := k.Socket(false)
//	err := s.Setsockopt(0, 42, groupReq) // MCAST_JOIN_GROUP
//
// Interfaces go and come with [Kernel.RemoveInterface] and [Kernel.AddInterface],
// down and up with [Kernel.SetUp]. Time stands still until [Kernel.Advance]: on
// macOS a group that is left and joined before another thread of the kernel had
// its turn is spoiled. Calls fail as [Kernel.Fault], [Kernel.FaultAfter] and
// [Kernel.FailCall] say.
//
// The models are held against what is real. TestVectors replays what the option
// code of macOS and FreeBSD answered, TestLinuxModelIsTheKernel and those beside
// it send the same requests to the running kernel. Windows is modelled after its
// documentation only.
//
// Comments name the evidence a line stands on: an RFC section, a vendor's page,
// a kernel's source file, or "observed", which means seen on a running kernel.
// Where no evidence was to be had, the behaviour is the one of RFC 3678 and the
// comment says "assumed".
package kerneltest
