// A control plane for tests: etcd and the API server in one process, on loopback.
//
// It writes a kubeconfig, prints one line once it serves, and ends on SIGTERM or when its parent
// does. Called by the name of `etcd` or `kube-apiserver` it is that program, so that a directory
// of two links to it is what KUBEBUILDER_ASSETS names.
//
// Nothing controls and nothing runs pods: whoever uses it writes statuses and EndpointSlices.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// How often to look whether the parent is still there.
const parentInterval = 200 * time.Millisecond

const usage = `Usage: control-plane [flags] [-- kube-apiserver flags]

Starts etcd and kube-apiserver on loopback and prints, once they serve,

    ready server=https://127.0.0.1:PORT kubeconfig=FILE

Flags:
`

func main() {
	switch filepath.Base(os.Args[0]) {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "kube-apiserver":
		if err := app.NewAPIServerCommand().Execute(); err != nil {
			os.Exit(1)
		}
		return
	}
	directory := flag.String("directory", "",
		"keep all state in `DIR`/control-plane; whoever kills this program can start it again on "+
			"the same state, and an orderly end removes it (default: a temporary directory)")
	port := flag.Uint("port", 0, "`PORT` of the API server, 0 for a free one")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if *port > 65535 {
		fmt.Fprintf(os.Stderr, "control-plane: -port %d is not a port: use 0 to 65535\n", *port)
		os.Exit(64)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(endWithParent(ctx), *directory, uint16(*port), flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "control-plane: %v\n", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, directory string, port uint16, flags []string) error {
	if directory == "" {
		temporary, err := os.MkdirTemp("", "control-plane-")
		if err != nil {
			return fmt.Errorf("make a directory for the state: %w", err)
		}
		defer os.RemoveAll(temporary)
		directory = temporary
	}
	directory = filepath.Join(directory, "control-plane")
	defer os.RemoveAll(directory)
	state, err := openState(directory)
	if err != nil {
		return err
	}
	store, err := startStore(state)
	if err != nil {
		return err
	}
	defer store.Close()
	return serve(ctx, state, store.Clients[0].Addr().String(), port, flags)
}

// endWithParent is ctx, which ends also when the process that started this one is gone: whoever
// kills a test leaves nothing behind.
func endWithParent(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	parent := os.Getppid()
	go func() {
		for os.Getppid() == parent {
			time.Sleep(parentInterval)
		}
		cancel()
	}()
	return ctx
}
