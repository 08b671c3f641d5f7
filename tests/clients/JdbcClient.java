import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.HexFormat;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;

/**
 * JDBC at work; prints what it saw, so that two ways to the server can be compared.
 *
 * <p>usage: JdbcClient URL MEGABYTES
 */
public class JdbcClient {
    static final String ROW = "x".repeat(1000);

    static Connection connect(String url) throws SQLException {
        return DriverManager.getConnection(url, "postgres", System.getenv("PGPASSWORD"));
    }

    /** A table's worth of text, made while it is read. */
    static class Source extends InputStream {
        final int blocks;
        int block = 0;
        byte[] current = new byte[0];
        int at = 0;

        Source(int blocks) {
            this.blocks = blocks;
        }

        boolean fill() {
            if (at < current.length) return true;
            if (block == blocks) return false;
            StringBuilder text = new StringBuilder(1010 * 1000);
            for (int n = 0; n < 1000; n++) text.append(block * 1000 + n).append('\t').append(ROW).append('\n');
            current = text.toString().getBytes(StandardCharsets.UTF_8);
            at = 0;
            block++;
            return true;
        }

        @Override
        public int read() {
            return fill() ? current[at++] & 0xff : -1;
        }

        @Override
        public int read(byte[] buffer, int offset, int length) {
            if (!fill()) return -1;
            int taken = Math.min(length, current.length - at);
            System.arraycopy(current, at, buffer, offset, taken);
            at += taken;
            return taken;
        }
    }

    static class Digest extends OutputStream {
        final MessageDigest digest;
        long length = 0;

        Digest() throws Exception {
            digest = MessageDigest.getInstance("SHA-256");
        }

        @Override
        public void write(int value) {
            digest.update((byte) value);
            length++;
        }

        @Override
        public void write(byte[] buffer, int offset, int count) {
            digest.update(buffer, offset, count);
            length += count;
        }
    }

    public static void main(String[] arguments) throws Exception {
        try {
            work(arguments[0], Integer.parseInt(arguments[1]));
        } catch (SQLException error) {
            System.err.println(error.getSQLState() + " " + error.getMessage());
            System.exit(1);
        }
    }

    static void work(String url, int megabytes) throws Exception {
        try (Connection connection = connect(url)) {
            try (Statement statement = connection.createStatement()) {
                statement.execute("create temp table t (id int, v text); select 1");
                System.out.println("simple");
            }
            try (PreparedStatement statement = connection.prepareStatement(
                    "select g, g::float8 / 7, decode(md5(g::text), 'hex'), ?::text"
                            + " from generate_series(1, 5000) g where g > ? order by g")) {
                // Results turn binary once the statement is prepared on the server.
                for (int round = 0; round < 7; round++) {
                    statement.setString(1, "déjà vu");
                    statement.setInt(2, 10);
                    MessageDigest digest = MessageDigest.getInstance("SHA-256");
                    int rows = 0;
                    try (ResultSet results = statement.executeQuery()) {
                        while (results.next()) {
                            digest.update((results.getInt(1) + " " + results.getDouble(2) + results.getString(4))
                                    .getBytes(StandardCharsets.UTF_8));
                            digest.update(results.getBytes(3));
                            rows++;
                        }
                    }
                    System.out.println("extended " + rows + " " + HexFormat.of().formatHex(digest.digest()));
                }
            }
            CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
            System.out.println("copy in " + copies.copyIn("copy t from stdin", new Source(megabytes), 1 << 16));
            Digest digest = new Digest();
            System.out.println("copy out " + copies.copyOut("copy (select * from t order by id) to stdout", digest)
                    + " " + digest.length + " " + HexFormat.of().formatHex(digest.digest.digest()));
            try (Connection listener = connect(url); Statement listen = listener.createStatement();
                    Statement notify = connection.createStatement()) {
                listen.execute("listen news");
                notify.execute("notify news, 'hello'");
                PGNotification[] heard = listener.unwrap(PGConnection.class).getNotifications(10_000);
                System.out.println("notify " + heard[0].getName() + " " + heard[0].getParameter());
            }
            try (Statement statement = connection.createStatement()) {
                Thread canceller = new Thread(() -> {
                    try {
                        Thread.sleep(500);
                        statement.cancel();
                    } catch (Exception error) {
                        System.out.println("cancel: " + error);
                    }
                });
                canceller.start();
                try {
                    statement.execute("select pg_sleep(30)");
                    throw new IllegalStateException("the query was not cancelled");
                } catch (SQLException error) {
                    System.out.println("cancel " + error.getSQLState());
                }
                canceller.join();
                ResultSet results = statement.executeQuery("select 'still here'");
                results.next();
                System.out.println("after " + results.getString(1));
            }
        }
    }
}
