package mcast

import (
	"net"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// notifications hint at changes of links by NotifyIpInterfaceChange and
// NotifyUnicastIpAddressChange.
// https://learn.microsoft.com/en-us/windows/win32/api/netioapi/nf-netioapi-notifyipinterfacechange
type notifications struct {
	handles []windows.Handle
	news    chan struct{} // with room for one
	done    chan struct{}
	once    sync.Once

	mu    sync.Mutex
	hints []linkHint
}

var (
	listening   sync.Mutex
	listener    *notifications // whom the callbacks tell; Windows lets a program make few callbacks
	onInterface = sync.OnceValue(func() uintptr {
		return windows.NewCallback(func(_ uintptr, row *windows.MibIpInterfaceRow, kind uint32) uintptr {
			if row != nil && kind == windows.MibDeleteInstance {
				hint(linkHint{index: int(row.InterfaceIndex), gone: !exists(int(row.InterfaceIndex))})
			} else {
				hint(linkHint{look: true})
			}
			return 0
		})
	})
	onAddress = sync.OnceValue(func() uintptr {
		return windows.NewCallback(func(uintptr, unsafe.Pointer, uint32) uintptr {
			hint(linkHint{look: true})
			return 0
		})
	})
)

// exists tells an interface that went away from one that lost one of its two
// protocols.
func exists(index int) bool {
	_, err := net.InterfaceByIndex(index)
	return err == nil
}

func hint(h linkHint) {
	listening.Lock()
	s := listener
	listening.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	s.hints = append(s.hints, h)
	s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default: // there is some already
	}
}

func openHints() (hintSource, error) {
	s := &notifications{news: make(chan struct{}, 1), done: make(chan struct{})}
	listening.Lock()
	listener = s
	listening.Unlock()
	var h windows.Handle
	if err := windows.NotifyIpInterfaceChange(windows.AF_UNSPEC, onInterface(), nil, false, &h); err != nil {
		s.close()
		return nil, err
	}
	s.handles = append(s.handles, h)
	if windows.NotifyUnicastIpAddressChange(windows.AF_UNSPEC, onAddress(), nil, false, &h) == nil {
		s.handles = append(s.handles, h)
	}
	return s, nil
}

func (s *notifications) read() ([]linkHint, error) {
	select {
	case <-s.news:
	case <-s.done:
		return nil, net.ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	hints := s.hints
	s.hints = nil
	return hints, nil
}

// close ends the notifications. Windows waits for callbacks that are under way.
func (s *notifications) close() {
	s.once.Do(func() {
		listening.Lock()
		if listener == s {
			listener = nil
		}
		listening.Unlock()
		for _, h := range s.handles {
			windows.CancelMibChangeNotify2(h)
		}
		close(s.done)
	})
}
