package netif

import (
	"encoding/binary"
	"net"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Windows lets a program make few callbacks: there is one of each kind, which
// tells all queues.
var (
	queuesMu sync.Mutex
	queues   = make(map[*hintQueue]bool)

	onInterface = sync.OnceValue(func() uintptr {
		return windows.NewCallback(func(_ uintptr, row *[ipInterfaceRowIndex + 4]byte, kind uint32) uintptr {
			h := hint{}
			if row != nil && kind == windows.MibDeleteInstance {
				// Each protocol has a row of its own: the interface may be there still.
				if index := rowInterface(row, binary.NativeEndian); !exists(index) {
					h = hint{index: index, gone: true}
				}
			}
			tellAll(h)
			return 0
		})
	})
	onAddress = sync.OnceValue(func() uintptr {
		return windows.NewCallback(func(uintptr, unsafe.Pointer, uint32) uintptr {
			tellAll(hint{})
			return 0
		})
	})
)

func exists(index int) bool {
	_, err := net.InterfaceByIndex(index)
	return err == nil
}

func tellAll(h hint) {
	queuesMu.Lock()
	defer queuesMu.Unlock()
	for q := range queues {
		q.add(h)
	}
}

// watch takes hints by NotifyIpInterfaceChange and NotifyUnicastIpAddressChange.
// https://learn.microsoft.com/en-us/windows/win32/api/netioapi/nf-netioapi-notifyipinterfacechange
func watch() (Source, error) {
	q := newHintQueue()
	queuesMu.Lock()
	queues[q] = true
	queuesMu.Unlock()
	var handles []windows.Handle
	var once sync.Once
	// Windows waits for callbacks that are under way.
	shut := func() error {
		once.Do(func() {
			queuesMu.Lock()
			delete(queues, q)
			queuesMu.Unlock()
			for _, h := range handles {
				windows.CancelMibChangeNotify2(h)
			}
			q.close()
		})
		return nil
	}
	var h windows.Handle
	if err := windows.NotifyIpInterfaceChange(windows.AF_UNSPEC, onInterface(), nil, false, &h); err != nil {
		shut()
		return nil, os.NewSyscallError("NotifyIpInterfaceChange", err)
	}
	handles = append(handles, h)
	if windows.NotifyUnicastIpAddressChange(windows.AF_UNSPEC, onAddress(), nil, false, &h) == nil {
		handles = append(handles, h)
	}
	return &lister{hints: q, list: host{}.Interfaces, clock: wallClock, shut: shut}, nil
}

// carriers: package net calls an interface without one down.
func carriers() map[int]bool { return nil }
