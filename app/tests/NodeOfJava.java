// SPDX-License-Identifier: Apache-2.0
import com.ericsson.otp.erlang.*;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;

/**
 * A node made with Erlang's jinterface, for test_c_and_java.py: OWN_ADDRESS PEER COOKIE.
 *
 * <p>It pings the peer, sends {Self, hello} to its process "box", prints what it is sent, a line
 * each, and ends at the atom "last".
 */
public class NodeOfJava {
    /** Connects from the address in the node's name, of several that this machine has. */
    static class FromOwnAddress extends OtpSocketTransportFactory {
        private final InetAddress own;

        FromOwnAddress(InetAddress own) {
            this.own = own;
        }

        @Override
        public OtpTransport createTransport(InetAddress address, int port) throws IOException {
            Socket socket = new Socket();
            if (!address.isLoopbackAddress()) {
                socket.bind(new InetSocketAddress(own, 0));
            }
            socket.connect(new InetSocketAddress(address, port));
            return new OtpSocketTransport(socket);
        }

        @Override
        public OtpTransport createTransport(String address, int port) throws IOException {
            return createTransport(InetAddress.getByName(address), port);
        }
    }

    public static void main(String[] arguments) throws Exception {
        InetAddress own = InetAddress.getByName(arguments[0]);
        OtpNode node =
                new OtpNode("j@" + arguments[0], arguments[2], new FromOwnAddress(own));
        OtpMbox box = node.createMbox("jbox");
        System.out.println("ping " + node.ping(arguments[1], 60000));
        OtpErlangObject[] hello = {box.self(), new OtpErlangAtom("hello")};
        box.send("box", arguments[1], new OtpErlangTuple(hello));
        OtpErlangObject message;
        do {
            message = box.receive();
            System.out.println(message.getClass().getSimpleName() + " " + message);
        } while (!message.toString().equals("last"));
        node.close();
        System.exit(0);
    }
}
