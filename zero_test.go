//go:build !plan9

package mcast_test

import (
	"context"
	"errors"
	"iter"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
)

// The zero Conn, Pool and Members are not open: every method answers, with an
// error where it has one, and none panics.
func TestZero(t *testing.T) {
	pool := new(mcast.Pool)
	for name, v := range map[string]any{
		"Conn":               new(mcast.Conn),
		"Pool":               pool,
		"Members":            new(mcast.Members),
		"Members of a Pool":  pool.On(5000),
		"a Pool's Members":   pool.On(0),
		"Filter":             new(mcast.Filter),
		"Message":            new(mcast.Message),
		"OpError with Errno": &mcast.OpError{Err: os.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) { callAll(t, reflect.ValueOf(v)) })
	}
}

// noError are the methods that may answer nil to zero arguments.
var noError = map[string]bool{
	"Filter.Set": true, // the zero Membership is none
}

func callAll(t *testing.T, v reflect.Value) {
	typ := v.Type()
	for i := range typ.NumMethod() {
		m := typ.Method(i)
		full := typ.Elem().Name() + "." + m.Name
		t.Run(m.Name, func(t *testing.T) {
			defer func() {
				if x := recover(); x != nil {
					t.Errorf("%s panics: %v", full, x)
				}
			}()
			var args []reflect.Value
			f := v.Method(i)
			for k := range f.Type().NumIn() {
				if f.Type().IsVariadic() && k == f.Type().NumIn()-1 {
					break
				}
				switch in := f.Type().In(k); {
				case in == reflect.TypeFor[context.Context]():
					args = append(args, reflect.ValueOf(t.Context()))
				case in == reflect.TypeFor[*mcast.Message]():
					args = append(args, reflect.ValueOf(&mcast.Message{Buf: make([]byte, 10)}))
				case in == reflect.TypeFor[[]mcast.Message]():
					args = append(args, reflect.ValueOf([]mcast.Message{{Buf: make([]byte, 10)}}))
				case in == reflect.TypeFor[[]byte]():
					args = append(args, reflect.ValueOf(make([]byte, 1<<16)))
				case in == reflect.TypeFor[[]mcast.Datagram]():
					args = append(args, reflect.ValueOf(make([]mcast.Datagram, 1)))
				case in.Kind() == reflect.Int:
					args = append(args, reflect.ValueOf(100))
				case in == reflect.TypeFor[net.Addr]():
					args = append(args, reflect.ValueOf(&net.UDPAddr{}))
				case in == reflect.TypeFor[error]():
					args = append(args, reflect.ValueOf(os.ErrInvalid))
				case in == reflect.TypeFor[time.Time]():
					args = append(args, reflect.ValueOf(time.Now()))
				case in.Kind() == reflect.Interface || in.Kind() == reflect.Pointer:
					t.Skipf("%s takes %v", full, in)
				default:
					args = append(args, reflect.Zero(in))
				}
			}
			for _, out := range f.Call(args) {
				switch x := out.Interface().(type) {
				case iter.Seq2[*mcast.Message, error]:
					n := 0
					for m, err := range x {
						if n++; m != nil || !errors.Is(err, os.ErrInvalid) || n > 1 {
							t.Errorf("%s yields %v, %v", full, m, err)
						}
					}
					if n != 1 {
						t.Errorf("%s yields %d times", full, n)
					}
				case iter.Seq2[mcast.Group, mcast.GroupStats]:
					for g, s := range x {
						t.Errorf("%s yields %v, %v", full, g, s)
					}
				case error:
					if typ.Elem().Name() != "OpError" && !errors.Is(x, os.ErrInvalid) && !strings.HasPrefix(full, "Filter.") {
						t.Errorf("%s: %v", full, x)
					}
				case nil:
					if out.Type() == reflect.TypeFor[error]() && !noError[full] {
						t.Errorf("%s answers no error", full)
					}
				}
			}
		})
	}
}

// What is sent and read by the zero Conn fails as with package net, the rest
// as with this one.
func TestZeroErrors(t *testing.T) {
	c, p, m := new(mcast.Conn), new(mcast.Pool), new(mcast.Members)
	_, write := c.WriteTo([]byte("x"), &net.UDPAddr{})
	_, via := c.WriteVia(nil, netip.AddrPort{}, "", netip.Addr{})
	_, batch := c.WriteBatch(make([]mcast.Message, 1))
	_, _, read := c.ReadFrom(nil)
	for i, err := range []error{write, via, batch, read, c.ReadMessage(&mcast.Message{Buf: make([]byte, 1)}), p.ReadMessage(&mcast.Message{Buf: make([]byte, 1)})} {
		var e *net.OpError
		if !errors.As(err, &e) {
			t.Errorf("error %d: %v", i, err)
		}
	}
	g := mcast.Group{}
	for i, err := range []error{c.Join(g), p.Join(g), m.Join(g), c.Close(), p.Close(), c.Repair(), p.Repair(), c.SetReadDeadline(time.Time{}), p.SetReadDeadline(time.Time{})} {
		var e *mcast.OpError
		if !errors.As(err, &e) || e.Op == "" || !strings.Contains(err.Error(), e.Op) {
			t.Errorf("error %d: %v", i, err)
		}
	}
}
